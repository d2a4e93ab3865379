"""The command line where its script is not in PATH: `python -m customer_jobs.cli`."""

from customer_jobs.cli import main

if __name__ == "__main__":
    main()
