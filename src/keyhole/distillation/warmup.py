"""A student's first steps, to see what its layers become before it is decided what each of them learns."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

from keyhole.data.splits import Split
from keyhole.distillation.arm import Arm
from keyhole.distillation.cohort import Cohort
from keyhole.distillation.config import TrainConfig
from keyhole.distillation.notation import parse_terms
from keyhole.distillation.own_terms import OwnLoss
from keyhole.errors import DivergenceError, SettingError
from keyhole.models.network import InputSpec, Network
from keyhole.progress import Progress, silent

_NAME = "warm-up"


class WarmUpError(DivergenceError):
    """A student that diverged in its warm-up, which concerns nobody but the arms that begin with it."""


def warm_up(
    student: str,
    spec: InputSpec,
    train: Split,
    *,
    config: TrainConfig,
    steps: int,
    teacher: Network,
    progress: Progress = silent,
) -> Network:
    """Return a student after a few steps of training, which depend on the seed and on nothing else that is trained.

    It learns from the labels, or from the teacher's softened logits where there are none; with the learning rate at
    which the training begins.

    Args:
        student: Name of the network.
        spec: What it expects of its images.
        train: The training images.
        config: How it is trained; its seed fixes initialization, order and augmentation.
        steps: How many steps; 0 returns it as it was drawn.
        teacher: The teacher.
        progress: Wraps the steps.

    Raises:
        SettingError: Steps below 0, or fewer images than a batch.
        WarmUpError: The loss became NaN or infinite.

    Example:
        >>> from keyhole.data.sources import default_input, open_data
        >>> from keyhole.models.zoo import build
        >>> spec, train = default_input("digits"), open_data("digits").train
        >>> teacher = build("resnet8", classes=10, input=spec)
        >>> config = TrainConfig(epochs=1, precision="fp32")
        >>> warm_up("resnet8", spec, train, config=config, steps=1, teacher=teacher).classes
        10
    """
    if steps < 0:
        raise SettingError(f"The warm-up has {steps} steps; expected at least 0.")
    labeled = bool(train.classes)
    arm = Arm(_NAME, student, spec, parse_terms("ce" if labeled else "kd"))
    classes = len(train.classes) or teacher.classes
    cohort = Cohort([arm], config, classes=classes, teacher=None if labeled else teacher, train=train)
    train = train.to(cohort.device)
    cohort.train_mode()
    in_epoch = max(1, len(train) // config.batch_size)
    done = epoch = 0
    while done < steps:
        wanted = min(in_epoch, steps - done)
        batches = train.training_batches(config.batch_size, seed=config.seed, epoch=epoch, augment=config.augment)
        for lesson in progress(cohort.lessons(islice(batches, wanted)), label=f"{_NAME} of {student}", total=wanted):
            cohort.step(lesson, config.rate(min(done / in_epoch, config.warmup_epochs)))
            done += 1
        epoch += 1
    for why in cohort.diverged(f"after {steps} steps").values():
        raise WarmUpError(f"The {_NAME} of {student}: {why}. Lower --lr, or match otherwise.")
    return cohort.learners[0].network


def rehearse(arm: Arm, train: Split, *, config: TrainConfig, teacher: Network) -> list[str]:
    """Let an arm take two steps, so that a mistake in a loss of the user's shows at once.

    Args:
        arm: The arm; what it learns in these steps is thrown away.
        train: The training images.
        config: How it will be trained.
        teacher: The teacher.

    Returns:
        Names of the user's losses that gave a constant both times, from which nothing is learnt.

    Raises:
        KeyholeError: The steps cannot be taken.
    """
    config = replace(config, compile="off")
    cohort = Cohort([arm], config, classes=len(train.classes) or teacher.classes, teacher=teacher, train=train)
    cohort.train_mode()
    batches = train.to(cohort.device).training_batches(config.batch_size, seed=config.seed, epoch=0, augment=False)
    for lesson in cohort.lessons(islice(batches, 2)):
        cohort.step(lesson, 0.0)
    [learner] = cohort.learners
    return [part.name for part in learner.terms.values() if isinstance(part, OwnLoss) and not part.learns]
