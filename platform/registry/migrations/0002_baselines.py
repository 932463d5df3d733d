from django.db import migrations, models

STAGES = [
    ("tokenizer", "Tokenizer"),
    ("pretrain", "Pretraining"),
    ("sft", "Supervised fine-tuning"),
    ("reward", "Reward model"),
    ("ppo", "PPO"),
    ("dpo", "DPO"),
    ("grpo", "GRPO or RLOO"),
    ("rejection", "Rejection sampling"),
    ("best_of_n", "Best of n"),
    ("evaluate", "Evaluation"),
]


class Migration(migrations.Migration):
    dependencies = [("registry", "0001_initial")]

    operations = [
        migrations.AlterField(model_name="run", name="stage", field=models.CharField(choices=STAGES, max_length=16)),
    ]
