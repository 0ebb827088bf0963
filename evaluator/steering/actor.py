"""Steer in a Ray actor, for services that must not load a language model themselves."""

import ray
from ray.actor import ActorClass

from scopemill.evaluator.steering.steerer import Steerer

SteererActor: ActorClass[Steerer] = ray.remote(max_restarts=3, max_task_retries=1)(Steerer)
