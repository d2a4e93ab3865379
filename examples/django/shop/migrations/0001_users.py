from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True
    operations = [
        migrations.CreateModel(
            "User",
            [
                ("id", models.BigAutoField(primary_key=True, serialize=False, verbose_name="ID", auto_created=True)),
                ("email", models.EmailField(max_length=254, unique=True)),
                ("stripe_customer_id", models.CharField(blank=True, max_length=255)),
            ],
        )
    ]
