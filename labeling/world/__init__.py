"""The small world: a market town whose people, prices and proverbs teach a language model in minutes."""

from labeling.world.annotators import noise_ceiling, rank
from labeling.world.corpus import corpus
from labeling.world.demonstrations import demonstrations
from labeling.world.judge import Judgement, judge
from labeling.world.questions import WorldPrompt, asked, prompts

__all__ = ["Judgement", "WorldPrompt", "asked", "corpus", "demonstrations", "judge", "noise_ceiling", "prompts", "rank"]
