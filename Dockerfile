# The application in its checkout, with what it needs to run and nothing else; docker-compose.yml starts it.
FROM python:3.11-slim AS build
WORKDIR /app
COPY pyproject.toml requirements.lock ./
# uv as the lock pins it. Given the lock as constraints it installs the named extras only, and refuses any file whose
# hash is not in there.
RUN sed -n '/^uv==/,/# via/p' requirements.lock > /tmp/uv.txt \
    && python -m venv /tmp/uv \
    && /tmp/uv/bin/python -m pip install --no-cache-dir --require-hashes -r /tmp/uv.txt
ENV UV_NO_CACHE=1 UV_COMPILE_BYTECODE=1 UV_PYTHON=/app/.venv/bin/python
RUN python -m venv --without-pip .venv \
    && /tmp/uv/bin/uv pip install --constraint requirements.lock --requirements pyproject.toml \
        --extra postgres --extra webhooks --extra worker
COPY . .
RUN /tmp/uv/bin/uv pip install --no-deps --build-constraint requirements.lock --editable . \
    && python -m compileall -q customer_jobs migrations models tasks worker

FROM python:3.11-slim
RUN useradd --system --uid 10001 --home-dir /app --shell /usr/sbin/nologin customer-jobs
COPY --from=build /app /app
WORKDIR /app
ENV PATH=/app/.venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER customer-jobs
# The worker gets SIGTERM itself: it finishes the jobs that run and takes no more.
CMD ["celery", "-A", "worker.app", "worker"]
