"""From plans to arms: what a plan asks for in names, chosen under one teacher and made ready to be trained."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from keyhole.data.splits import Split
from keyhole.distillation.arm import Arm
from keyhole.distillation.config import TrainConfig
from keyhole.distillation.kinds import TERMS, HintPair
from keyhole.distillation.matching import match_hints
from keyhole.distillation.notation import parse_terms
from keyhole.distillation.terms import Term
from keyhole.distillation.warmup import WarmUpError, rehearse, warm_up
from keyhole.errors import DataError, DivergenceError, SettingError, unknown_name
from keyhole.files import read_json, sha256
from keyhole.hints.choice import ChoiceConfig, Hints, choose_hints
from keyhole.hints.likeness import likeness
from keyhole.hints.moments import ObserveConfig, observe
from keyhole.hints.selection import CONTROLS, QUALITY, SELECTORS, Rule, Selection, check_rule, select
from keyhole.hints.similarity import METRICS, consensus
from keyhole.hints.weighting import WEIGHTINGS, hint_weights, one_in_each
from keyhole.models.layers import Layer, layers
from keyhole.models.network import InputSpec, Network, fingerprint
from keyhole.models.zoo import build
from keyhole.plans import ArmPlan, code_of, parse_count, settled_before
from keyhole.progress import Progress, silent
from keyhole.runtime import choose_device


def rule_of(plan: ArmPlan, clustering: str) -> Rule:
    """Return the rule by which a clustering or control chooses the hints of a plan.

    Raises:
        SettingError: The count is no number, or the clustering does not exist.
    """
    return Rule(clustering, parse_count(str(plan.count)), plan.center, plan.hint, plan.seed)


@dataclass(frozen=True)
class _Chosen:
    """Hints, the layers of the teacher that they were chosen from, the glob of those, and the clusters by name."""

    hints: Sequence[str]
    candidates: Sequence[Layer]
    pattern: str | None
    clusters: Sequence[Sequence[str]] = ()


_LIKENESS_IMAGES = 2000


def _weighs(term: Term) -> bool:
    return term.needs_hints and term.kind.weighs


def begun_with(teacher: str, plan: ArmPlan, *, code: bool = True) -> dict[str, Any]:
    """Return what stands behind the names of a plan, for a recipe: a file's weights, and code of the user's.

    That is the SHA-256 of the file that the student begins with, and of each function of the user's that makes the
    teacher or the student or is a term of the loss; nothing where there are none.

    Raises:
        DataError: The file cannot be read.
        UnknownNameError: A function of the user's cannot be imported.
    """
    own = code_of((teacher, plan.student), [plan.terms]) if code else {}
    return _weights_of(plan.student) | ({"code_sha256": own} if own else {})


def _weights_of(student: str) -> dict[str, Any]:
    return {"student_sha256": sha256(Path(student))} if student.endswith(".safetensors") else {}


class ArmMaker:
    """Turns plans into arms under one teacher; similarities are measured once for the same images and layers.

    Args:
        teacher: The teacher, with its trained weights.
        train: The images trained on; hints are chosen over them.
        config: How arms will be trained; similarities are measured on its device, in its precision.
        keep: Returns what was made under a name before, else what a function makes now, and keeps it; so that a run
            that goes on, or another process, does not decide anew what rounding could decide otherwise.
        progress: Wraps the long loops.
        note: Is told what was matched with what, and what looks wrong.
    """

    def __init__(
        self,
        teacher: Network,
        train: Split,
        config: TrainConfig,
        *,
        keep: Callable[[str, Callable[[], str]], str] = lambda _name, make: make(),
        progress: Progress = silent,
        note: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self.teacher, self.train, self.config = teacher, train, config
        self.keep, self.progress, self.note = keep, progress, note
        self._measured: dict[tuple[int, str | None, int], Hints] = {}
        self._students: dict[tuple[str, InputSpec], list[Layer]] = {}
        self._candidates: dict[str | None, list[Layer]] = {}
        self._likenesses: dict[str, Any] = {}
        self._rehearsed: set[tuple[tuple[Term, ...], str, InputSpec]] = set()
        self._subject = (fingerprint(teacher), len(train))

    def make(self, plan: ArmPlan) -> Arm:
        """Return the arm of a plan.

        Raises:
            WarmUpError: Its student diverged before it was matched.
            KeyholeError: A name does not exist, or settings do not fit together.
        """
        terms = parse_terms(plan.terms, temperature=plan.temperature, equal=plan.balance == "gradients")
        _check_names(plan, terms)
        spec = self.teacher.input
        if plan.student_size is not None:
            spec = replace(spec, size_px=(plan.student_size, plan.student_size))
        name = plan.name or plan.student
        pairs: tuple[HintPair, ...] = ()
        hinted = any(term.needs_hints for term in terms)
        built = self._students.get((plan.student, spec))
        if built is None or (hinted and not built):  # built at once, so that a mistake shows at once
            student = build(plan.student, classes=len(self.train.classes) or self.teacher.classes, input=spec)
            self._students[plan.student, spec] = layers(student) if hinted else []
        if hinted:
            chosen = self._hints(plan)
            pairs = self._weighed(plan, chosen, self._matched(plan, chosen, spec))
            shown = ", ".join(_pair_texts(pairs, chosen.candidates, self._students[plan.student, spec]))
            worn = (f"{term.name}: {term.kind.adapter}" for term in terms if term.kind.adapter)
            self.note(f"{name}: {shown}{''.join(f' ({each} layers)' for each in worn)}")
        arm = Arm(name, plan.student, spec, terms, pairs, plan.balance)
        own = tuple(term for term in terms if term.kind.own)
        if own and (own, plan.student, spec) not in self._rehearsed:
            for each in rehearse(arm, self.train, config=self.config, teacher=self.teacher):
                self.note(
                    f"Warning: {each} did not depend on the student in its first two steps. If that is not meant, "
                    "look for a detach."
                )
            self._rehearsed.add((own, plan.student, spec))
        return arm

    def make_all(self, plans: Iterable[ArmPlan]) -> tuple[dict[str, Arm], dict[str, str]]:
        """Return arms by name, and of those whose student diverged before it was matched what happened to it.

        Raises:
            KeyholeError: As for :meth:`make`.
        """
        arms, lost = {}, {}
        for plan in plans:
            try:
                arms[plan.name] = self.make(plan)
            except WarmUpError as error:
                lost[plan.name] = str(error)
        return arms, lost

    def _matched(self, plan: ArmPlan, chosen: _Chosen, spec: InputSpec) -> tuple[HintPair, ...]:
        found = self._likeness(plan, chosen, spec) if plan.match == "similarity" else None
        students = self._students[plan.student, spec]
        return match_hints(chosen.hints, chosen.candidates, students, how=plan.match, similarities=found)

    def _likeness(self, plan: ArmPlan, chosen: _Chosen, spec: InputSpec) -> Float[np.ndarray, "l m"]:
        """Return the similarity of the teacher's candidates with the layers of a student after its warm-up."""
        names = [[layer.name for layer in side] for side in (chosen.candidates, self._students[plan.student, spec])]
        config = replace(self.config, seed=plan.seed)
        settings = settled_before(config.deciding)
        student = _weights_of(plan.student).get("student_sha256", Path(plan.student).name)
        about = [student, asdict(spec), names, plan.match_steps, plan.samples, settings]
        deciding = [*about, *self._subject]
        key = _key_of("likeness", deciding)

        def measure() -> str:
            """Return the similarities, or what happened to the student, as JSON."""
            try:
                return json.dumps(compare().round(6).tolist())
            except WarmUpError as error:  # kept as well, so that all processes are told the same
                return json.dumps(str(error))

        def compare() -> Float[np.ndarray, "l m"]:
            """Return the similarities with a student that is warmed up for it."""
            student = warm_up(
                plan.student,
                spec,
                self.train,
                config=config,
                steps=plan.match_steps,
                teacher=self.teacher,
                progress=self.progress,
            )
            random = np.random.default_rng([plan.seed, 5])
            count = min(plan.samples, _LIKENESS_IMAGES)
            positions = torch.from_numpy(random.permutation(len(self.train))[:count].copy())
            images, device = self.train.subset(positions), choose_device(self.config.device)
            look = ObserveConfig(precision=self.config.precision, rbf=False)
            sides = (names[0], names[1])
            try:
                return likeness(
                    (self.teacher, student), sides, images, config=look, device=device, progress=self.progress
                )
            except DivergenceError as error:
                observe(self.teacher, images, names[0], config=look, device=device)  # raises where it is the teacher's
                raise WarmUpError(f"{plan.student} after its warm-up: {error}") from error

        if key not in self._likenesses:
            self._likenesses[key] = json.loads(self.keep(key, measure))
        found = self._likenesses[key]
        if isinstance(found, str):
            raise WarmUpError(found)
        return np.array(found)

    def _weighed(self, plan: ArmPlan, chosen: _Chosen, pairs: tuple[HintPair, ...]) -> tuple[HintPair, ...]:
        if plan.hint_weights == "equal":
            return pairs
        position = {layer.name: i for i, layer in enumerate(chosen.candidates)}
        clusters = [[position[name] for name in members] for members in chosen.clusters]
        wanted = [position[name] for name in chosen.hints]
        needed = len(wanted) > 1 and not (plan.hint_weights == "mass" and one_in_each(wanted, clusters))

        def weigh() -> str:
            matrix = self._similarities(plan, chosen, Rule(count=1)) if needed else None
            return json.dumps(hint_weights(plan.hint_weights, wanted, matrix, clusters=clusters))

        deciding = [plan.hint_weights, wanted, clusters, plan.metric, *_sample(plan, chosen), *self._subject]
        weights = json.loads(self.keep(_key_of("weights", deciding), weigh))
        return tuple(replace(pair, weight=weight) for pair, weight in zip(pairs, weights, strict=True))

    def _hints(self, plan: ArmPlan) -> _Chosen:
        """Return the hints of a plan, and the layers of the teacher that they were chosen from."""
        given = plan.hints
        if given is None:
            raise SettingError(
                f"Arm {plan.name or plan.student} has hint terms and no hints; give --hints auto or a hints.json."
            )
        if isinstance(given, str) and given.endswith(".json"):
            return self._from_file(Path(given))
        if plan.layers not in self._candidates:
            self._candidates[plan.layers] = layers(self.teacher, plan.layers)
        open_to = _Chosen((), self._candidates[plan.layers], plan.layers)
        if not isinstance(given, str):
            return replace(open_to, hints=given)
        if given == "auto" or given in SELECTORS:
            return self._choose(plan, "kmeans" if given == "auto" else given, open_to)
        named = [part.strip() for part in given.split(",")]
        layer_names = [layer.name for layer in open_to.candidates]
        if len(named) == 1 and named[0] not in layer_names:
            raise unknown_name("selector or hint layer", given, ["auto", *SELECTORS, *layer_names])
        return replace(open_to, hints=named)

    def _choose(self, plan: ArmPlan, clustering: str, open_to: _Chosen) -> _Chosen:
        rule, candidates = rule_of(plan, clustering), open_to.candidates
        check_rule(candidates, rule)
        if clustering in CONTROLS and clustering != "reverse":
            return _named(open_to, select(candidates, None, rule))

        def look() -> str:
            found = _named(open_to, self._selected(plan, rule, open_to))
            return json.dumps([found.hints, found.clusters])

        deciding = [plan.metric, asdict(rule), *_sample(plan, open_to), *self._subject]
        hints, clusters = json.loads(self.keep(_key_of("hints", deciding), look))
        return replace(open_to, hints=hints, clusters=clusters)

    def _selected(self, plan: ArmPlan, rule: Rule, open_to: _Chosen) -> Selection:
        matrix, candidates = self._similarities(plan, open_to, rule), open_to.candidates
        measured = self._measured[_sample(plan, open_to)]
        known = [measured.information[layer.name] for layer in candidates] if rule.hint == "informative" else None
        quality = (
            [measured.quality[layer.name]["quality"] for layer in candidates] if rule.clustering == QUALITY else None
        )
        return select(
            candidates,
            matrix,
            rule,
            information=None if known is None else np.array(known),
            quality=None if quality is None else np.array(quality),
        )

    def _similarities(self, plan: ArmPlan, open_to: _Chosen, rule: Rule) -> Float[np.ndarray, "l l"]:
        """Return the similarities of candidates under a plan's metrics, measured if need be, with what a rule needs."""
        metrics = _metrics(plan)
        config = ChoiceConfig(plan.samples, metrics, open_to.pattern, draws=0, bare=False, seed=plan.seed)
        key = _sample(plan, open_to)
        old = self._measured.get(key)
        if (
            old is None
            or not set(metrics) <= old.similarities.keys()
            or (rule.hint == "informative" and not old.information)
            or (rule.clustering == QUALITY and not old.quality)
        ):
            new = choose_hints(
                self.teacher,
                self.train,
                rule,
                config=config,
                look=ObserveConfig(precision=self.config.precision),
                device=choose_device(self.config.device),
                progress=self.progress,
            )
            self._measured[key] = new if old is None else _both(old, new)
        matrices = [self._measured[key].similarities[name] for name in metrics]
        return matrices[0] if len(matrices) == 1 else consensus(matrices)

    def _from_file(self, path: Path) -> _Chosen:
        value = read_json(path)
        try:
            hints, names = value["hints"], [layer["name"] for layer in value.get("layers", ())]
            clusters = value.get("clusters", [])
            in_clusters = [name for members in clusters for name in members]
            if not isinstance(hints, list) or not all(isinstance(name, str) for name in (*hints, *names, *in_clusters)):
                raise TypeError
        except (AttributeError, LookupError, TypeError) as error:
            raise DataError(f"{path} is no hints.json of 'keyhole hints': it has no list of hints.") from error
        pattern = ",".join([*hints, *names]) if names else None
        if isinstance(value, Mapping) and value.get("teacher") != self.teacher.name:
            self.note(f"Warning: {path} was made for {value.get('teacher')}, the teacher is {self.teacher.name}.")
            pattern = None
        candidates = layers(self.teacher, pattern)
        if not {*in_clusters} <= {layer.name for layer in candidates}:
            clusters = []
        return _Chosen(hints, candidates, pattern, clusters)


def _check_names(plan: ArmPlan, terms: Sequence[Term]) -> None:
    """Raise where a plan names what does not exist, also where nothing is measured, or terms that do not serve it."""
    if odd := next((term.name for term in terms if term.kind.embeds), None):
        fitting = ", ".join(name for name, kind in TERMS.items() if not kind.embeds)
        raise SettingError(f"Term {odd} takes outputs for embeddings, and these are logits of classes; take {fitting}.")
    for metric in _metrics(plan):
        if metric not in METRICS:
            raise unknown_name("metric", metric, METRICS)
    if plan.hint_weights not in WEIGHTINGS:
        raise unknown_name("way to weigh hints", plan.hint_weights, WEIGHTINGS)
    hinted = any(term.needs_hints for term in terms)
    if hinted and plan.hint_weights != "equal" and not any(_weighs(term) for term in terms):
        raise SettingError(
            f"hint_weights {plan.hint_weights} serves none of the terms {plan.terms}, which weigh layers by "
            "themselves. Leave it out, or add a term of hint pairs such as hint."
        )


def _metrics(plan: ArmPlan) -> tuple[str, ...]:
    return tuple(name.strip() for name in plan.metric.split(","))


def _key_of(kind: str, deciding: Sequence[Any]) -> str:
    """Return the name under which something is kept that all of this decides."""
    return f"{kind}-{hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:16]}"


def _pair_texts(pairs: Sequence[HintPair], teacher: Sequence[Layer], student: Sequence[Layer]) -> list[str]:
    """Return hints and the layers that learn from them; where sizes differ, with what is done about it."""
    sizes = [{layer.name: layer.size for layer in side} for side in (teacher, student)]
    parts = []
    for pair in pairs:
        from_, to = sizes[0].get(pair.teacher), sizes[1].get(pair.student)
        part = f"{pair.teacher} -> {pair.student}"
        if from_ and to and from_ != to:
            common = tuple(map(min, from_, to))
            part += f" ({_by(from_)} and {_by(to)}, averaged to {_by(common)})"
        parts.append(part if pair.weight == 1 else f"{part} times {pair.weight:g}")
    return parts


def _by(size: tuple[int, ...]) -> str:
    return "x".join(map(str, size))


def _sample(plan: ArmPlan, open_to: _Chosen) -> tuple[int, str | None, int]:
    return plan.samples, open_to.pattern, plan.seed


def _named(open_to: _Chosen, selection: Selection) -> _Chosen:
    names = [layer.name for layer in open_to.candidates]
    grouped = selection.clusters
    groups = [grouped.members(k) for k in range(len(grouped.centers))] if grouped else []
    return replace(
        open_to,
        hints=[names[i] for i in selection.hints],
        clusters=[[names[i] for i in members] for members in groups],
    )


def _both(old: Hints, new: Hints) -> Hints:
    """Return what two looks at the same images and layers found."""
    return replace(
        new,
        similarities=old.similarities | new.similarities,
        information=new.information or old.information,
        quality=new.quality or old.quality,
    )
