"""PEFT's adapter_config.json: ranks and alphas by module; settings that are not understood are refused."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

NO_MODULES = "dummy-target-modules"  # PEFT's word for a configuration that adds nothing
MERGE_FIRST = "merge it with PEFT (merge_and_unload) and convert the result"

# Keys that do not change what is added to a weight, or that are checked one by one here. Every other key of PEFT's,
# now or later, changes the computation when it is set.
_UNDERSTOOD = {
    *("peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "init_lora_weights", "bias"),
    *("target_modules", "exclude_modules", "modules_to_save", "layers_to_transform", "layers_pattern"),
    *("task_type", "inference_mode", "base_model_name_or_path", "revision", "auto_mapping", "peft_version"),
    *("lora_dropout", "runtime_config"),  # used in training only
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config"),  # for ways to begin; see _BEGINNINGS
    *("megatron_core", "qalora_group_size"),  # have a value even where they are not used
}
# Ways to begin that do not change the base's weights. PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA subtract a part of them:
# such an adapter does not fit the base on disk.
_BEGINNINGS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")


def unsupported(raw: Mapping[str, Any]) -> list[str]:
    """Returns a sentence for each setting that asks for more than W + scale · B @ A."""
    if raw.get("peft_type") != "LORA":  # in another kind the keys have other meanings
        return [f"peft_type: expected LORA, got {raw.get('peft_type')!r}: {MERGE_FIRST}"]
    problems = []
    if raw.get("bias", "none") != "none":
        problems.append(f"bias: expected none, got {raw['bias']!r}: {MERGE_FIRST}")
    if raw.get("init_lora_weights") not in _BEGINNINGS:
        problems.append(
            f"init_lora_weights {raw['init_lora_weights']!r} changes the base's weights: save it as plain LoRA with "
            "PEFT's path_initial_model_for_weight_conversion"
        )
    for key, value in raw.items():
        if key not in _UNDERSTOOD and value not in (None, False, "", [], {}):
            problems.append(f"{key}: {value!r} is not supported: {MERGE_FIRST}")
    return problems


Value = TypeVar("Value", int, float)


@dataclass(frozen=True)
class Strengths:
    """Ranks and alphas: the default, and those for patterns of module names.

    Attributes:
      rslora: scale by alpha / √r instead of alpha / r.
      rank, alpha: of modules that fit no pattern.
      ranks, alphas: by regular expressions for the end of a module's name.
    """

    rslora: bool
    rank: int
    alpha: float
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]

    @classmethod
    def read(cls, raw: Mapping[str, Any], problems: list[str]) -> Strengths | None:
        """Reads them from a configuration; adds what is wrong to `problems`, and then returns None."""
        if raw.get("peft_type") != "LORA":
            return None
        before = len(problems)
        rslora = raw.get("use_rslora", False)
        if rslora not in (None, True, False):
            problems.append(f"use_rslora: expected true or false, got {rslora!r}")
        rank, alpha = raw.get("r"), raw.get("lora_alpha")
        if not _is_rank(rank):
            problems.append(f"r: expected a whole number above 0, got {rank!r}")
        if not _is_alpha(alpha):
            problems.append(f"lora_alpha: expected a finite number, got {alpha!r}")
        patterns = {}
        for key, sound in (("rank_pattern", _is_rank), ("alpha_pattern", _is_alpha)):
            patterns[key] = raw.get(key) or {}
            if not isinstance(patterns[key], dict) or not all(map(sound, patterns[key].values())):
                problems.append(f"{key}: expected names with numbers as in {key[: -len('_pattern')]}, got {raw[key]!r}")
                continue
            problems += [f"{key}: {name!r} is no regular expression" for name in patterns[key] if not compiles(name)]
        if len(problems) > before:
            return None
        return cls(bool(rslora), int(rank or 0), alpha or 0.0, patterns["rank_pattern"], patterns["alpha_pattern"])

    def of(self, module: str) -> tuple[int, float]:
        """Returns (rank, alpha) of a module, by its name in the model that was trained."""
        return _matched(self.ranks, module, self.rank), _matched(self.alphas, module, self.alpha)


def _matched(patterns: Mapping[str, Value], module: str, default: Value) -> Value:
    """Returns the value of the first pattern that fits, as PEFT's `get_pattern_key` does."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _is_rank(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_alpha(value: Any) -> bool:
    # Not isfinite(): JSON has integers too large for a float.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def compiles(pattern: str) -> bool:
    """Returns whether a pattern is a regular expression."""
    try:
        re.compile(rf"(.*\.)?({pattern})$")
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def listed(problems: list[str], most: int = 50) -> str:
    """Returns the first problems, a line each, and how many more there are."""
    left = [f"and {len(problems) - most} more"] if len(problems) > most else []
    return "\n  ".join(problems[:most] + left)
