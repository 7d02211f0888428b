"""The tasks: a file for each kind of files, and one table that every command goes by."""

from videollava_jax.evaluation.tasks.choices import MMBENCH, SCIENCEQA_IMG
from videollava_jax.evaluation.tasks.open_images import LLAVA_BENCH, MMVET
from videollava_jax.evaluation.tasks.task import Files, Needed, Task
from videollava_jax.evaluation.tasks.video_chatgpt import CONSISTENCY, GENERIC, TEMPORAL
from videollava_jax.evaluation.tasks.video_choices import MVBENCH, NEXTQA, VIDEOMME
from videollava_jax.evaluation.tasks.video_qa import ACTIVITYNET_QA, MSRVTT_QA, MSVD_QA, TGIF_QA
from videollava_jax.evaluation.tasks.vqa import TEXTVQA, VIZWIZ, VIZWIZ_VAL, VQAV2, VQAV2_VAL
from videollava_jax.evaluation.tasks.yes_no_and_exact import GQA, POPE

__all__ = ["TASKS", "Files", "Needed", "Task"]

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        *(MSVD_QA, MSRVTT_QA, TGIF_QA, ACTIVITYNET_QA),
        *(GENERIC, TEMPORAL, CONSISTENCY),
        *(VQAV2, VQAV2_VAL, GQA, VIZWIZ, VIZWIZ_VAL, SCIENCEQA_IMG, TEXTVQA, POPE, MMBENCH, LLAVA_BENCH, MMVET),
        *(NEXTQA, MVBENCH, VIDEOMME),
    )
}
"""By name, in the order of the paper's tables; what the paper does not have comes last."""
