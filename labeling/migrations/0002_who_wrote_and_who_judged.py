from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("labeling", "0001_initial")]

    operations = [
        migrations.AddField(
            model_name="completion",
            name="policy_name",
            field=models.CharField(
                blank=True, default="", help_text="what an imported file says wrote it", max_length=60
            ),
            preserve_default=False,
        ),
        migrations.AddField(
            model_name="ranking",
            name="annotator_name",
            field=models.CharField(
                blank=True, default="", help_text="who judged, as an imported file says", max_length=60
            ),
            preserve_default=False,
        ),
    ]
