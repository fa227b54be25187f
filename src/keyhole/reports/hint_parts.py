"""The parts of the page about hint points; :mod:`keyhole.reports.hints_page` puts them together."""

from __future__ import annotations

from collections.abc import Sequence

from keyhole.hints.choice import Choice, Hints
from keyhole.hints.selection import CONTROLS, QUALITY
from keyhole.reports import explained, figures, maps
from keyhole.reports.markup import (
    NOTHING,
    Column,
    Html,
    chip,
    code,
    count,
    duration,
    figure,
    grid,
    join,
    paragraph,
    plural,
    section,
    table,
    words,
)


def names(hints: Hints) -> list[str]:
    """Return the names of all candidates, in the order of depth."""
    return [layer.name for layer in hints.layers]


def marks(hints: Hints, choice: Choice) -> maps.Marks:
    """Return what is drawn over a map for a choice."""
    candidates = names(hints)
    return maps.Marks([candidates.index(name) for name in choice.hints], maps.cluster_of(candidates, choice.clusters))


def title(hints: Hints) -> str:
    """Return which layers of which teacher should teach, as a sentence without its full stop."""
    chosen, total = hints.hints, len(hints.layers)
    if len(chosen) == 1:
        subject = f"layer {chosen[0]}"
    elif len(chosen) <= 4:
        subject = f"layers {words(chosen)}"
    elif len(chosen) == total:
        subject = f"all {total} layers"
    else:
        subject = f"{len(chosen)} of the {total} layers"
    if hints.rule.clustering in CONTROLS:
        return f"A control: {subject} of {hints.teacher} {'teaches' if len(chosen) == 1 else 'teach'}"
    return f"{subject[0].upper()}{subject[1:]} of {hints.teacher} should teach"


def lead(hints: Hints) -> Html:
    """Return how the layers were chosen, from what, and how sure that is."""
    chosen, rule = hints.choices[hints.metric], hints.rule
    by_quality = rule.clustering == QUALITY
    without = "" if rule.hint == "informative" or by_quality else ", without labels"
    seen = f"{plural(len(hints.sample_indices), 'image')} of {hints.data}{without}"
    compared = f"The {plural(len(hints.layers), 'layer')} were compared by {_deciding(hints)} over {seen}"
    if len(hints.layers) == 1:
        compared = f"There was only one layer to choose from; {seen}, went through it"
    if not chosen.clusters:
        taker = "the choice by quality" if by_quality else "this control"
        text = f"{compared}, but that decided nothing: {taker} takes {explained.control(rule)}."
        return paragraph(text, "lead")
    teaches = explained.HINT_NAMES[rule.hint]
    text = f"{compared}, and grouped into {plural(len(chosen.clusters), 'cluster')} {explained.grouping(rule)}"
    if rule.count is None and chosen.silhouette:
        text += ", the count with the highest silhouette"
    text += f"; the {teaches} of {'the' if len(chosen.clusters) == 1 else 'each'} cluster teaches."
    if rule.clustering == "reverse":
        text += " As a control, the deepest is given to the student's first stage."
    return paragraph(f"{text} {_sure(chosen)}", "lead")


def _deciding(hints: Hints) -> str:
    known = explained.metric(hints.metric)
    asked = [explained.metric(name) for name in hints.choices if name != hints.metric]
    return f"the {known} of {words(asked)}" if asked else known


def _sure(choice: Choice) -> str:
    if not choice.stability:
        return "How stable the choice is was not measured."
    least = min(choice.hints, key=lambda name: choice.stability[name])
    value = choice.stability[least]
    if value == 1:
        return "With half of the images, drawn again and again, the same choice came out each time."
    which = "it" if len(choice.hints) == 1 else f"the least stable of them, {least},"
    text = f"With half of the images, drawn again and again, {which} is chosen in {100 * value:.0f} % of the draws"
    members = next((cluster for cluster in choice.clusters if least in cluster), ())
    rival = max(members, key=lambda name: choice.stability[name], default=least)
    if choice.stability[rival] > value and rival not in choice.hints:
        text += f", and {rival} of its cluster in {100 * choice.stability[rival]:.0f} %"
    return f"{text}."


def hint_table(hints: Hints) -> Html:
    """Return the chosen layers, what they are, and what each stands for."""
    chosen = hints.choices[hints.metric]
    by_name = {layer.name: layer for layer in hints.layers}
    labels = dict(zip(names(hints), maps.cluster_of(names(hints), chosen.clusters), strict=False))
    columns = [Column("hint"), Column("layer", number=False), Column("channels"), Column("height × width")]  # noqa: RUF001
    columns += [Column("stands for", number=False)] if chosen.clusters else []
    columns += [Column("stability, %")] if chosen.stability else []
    rows = []
    for order, name in enumerate(chosen.hints, 1):
        layer = by_name[name]
        row = [str(order), code(name), count(layer.channels), f"{layer.size[0]} × {layer.size[1]}"]  # noqa: RUF001
        if chosen.clusters:
            cluster = labels[name]
            row.append(join([chip(cluster, str(cluster + 1)), Html(" "), _extent(hints, chosen.clusters[cluster])]))
        if chosen.stability:
            row.append(f"{100 * chosen.stability[name]:.0f}")
        rows.append(row)
    return table(columns, rows)


def _extent(hints: Hints, members: Sequence[str]) -> Html:
    candidates = names(hints)
    spans = maps.runs([candidates.index(name) for name in members])
    parts = [
        join([code(candidates[i]) for i in ((first,) if first == last else (first, last))], " to ")
        for first, last in spans
    ]
    return join([join(parts, "; "), f" ({plural(len(members), 'layer')})"])


def map_figure(hints: Hints) -> Html:
    """Return the large map of the deciding metric."""
    chosen, metric = hints.choices[hints.metric], explained.metric(hints.metric)
    alt = f"Similarity of the layers of {hints.teacher} by {metric}; hints {words(chosen.hints)}"
    drawn = maps.similarity_map(names(hints), hints.similarities[hints.metric], marks(hints, chosen), alt)
    caption = f"Each cell compares two layers by {metric}, the darker the more alike; the first layer is at the top "
    caption += "left. The scale spans the pairs of different layers. "
    if chosen.clusters:
        caption += "Outlines and the strip at the right are the clusters. "
        if any(len(maps.runs([names(hints).index(name) for name in members])) > 1 for members in chosen.clusters):
            caption += "A cluster in several pieces has several squares, joined by thin boxes. "
    if len(chosen.hints) <= maps.MOST_NAMED:
        caption += "Numbered points are the hints, in the order in which they are given to the student."
    else:
        caption += "Points are the hints."
    return figure(drawn, caption)


def stability_section(hints: Hints) -> Html:
    """Return the stability of all layers; nothing where it was not measured."""
    chosen = hints.choices[hints.metric]
    if not chosen.stability:
        return Html("")
    drawn = marks(hints, chosen)
    colors = {names(hints)[i]: drawn.color(i) for i in drawn.hints}
    values = [100 * chosen.stability[name] for name in names(hints)]
    picture = figures.bars(names(hints), values, colors, "How often each layer is chosen over half-samples")
    caption = (
        "How often each layer is chosen when only half of the images are looked at. Where two neighbors share the "
        "draws, they are nearly interchangeable."
    )
    return section("How stable the choice is", figure(picture, caption))


def silhouette_section(hints: Hints) -> Html:
    """Return the silhouette by count of clusters; nothing where there are no clusters."""
    chosen = hints.choices[hints.metric]
    if not chosen.silhouette:
        return Html("")
    best = max(chosen.silhouette, key=lambda k: (chosen.silhouette[k], -k))
    taken = len(chosen.clusters)
    caption = "Mean silhouette, from -1 to 1: high where layers are close to their own cluster and far from the next. "
    if hints.rule.count is None:
        caption += f"{taken} was taken because it is highest."
    elif best == taken:
        caption += f"{taken} was asked for; it is also the highest."
    else:
        caption += f"{taken} was asked for; the highest is at {best} ({chosen.silhouette[best]:.2f})."
    if len(chosen.silhouette) == 1:
        return section("How many clusters", paragraph(f"{caption} No other count can be measured.", "soft"))
    picture = figures.silhouettes(chosen.silhouette, taken, "Mean silhouette by count of clusters")
    return section("How many clusters", figure(picture, caption))


def metrics_section(hints: Hints) -> Html:
    """Return the choice under each metric; nothing where only one was asked for."""
    if len(hints.choices) < 2:
        return Html("")
    columns = [Column("metric", number=False), Column("hints", number=False), Column("clusters")]
    rows, pictures = [], []
    for name, choice in hints.choices.items():
        known = explained.metric(name)
        clusters = count(len(choice.clusters)) if choice.clusters else NOTHING
        first = f"{known} (decides)" if name == hints.metric else known
        rows.append([first, join([code(hint) for hint in choice.hints], ", "), clusters])
        alt = f"Similarity by {known} with its clusters and hints"
        low, high = maps.limits(hints.similarities[name])
        drawn = maps.small_map(hints.similarities[name], marks(hints, choice), alt, side_in=2.9)
        pictures.append(figure(drawn, f"{known}; light {low:.2f} to dark {high:.2f}"))
    decided = list(hints.choices).index(hints.metric)
    return section("What each metric would choose", table(columns, rows, strong=[decided]), grid(pictures))


def other_maps_section(hints: Hints) -> Html:
    """Return small maps of the metrics that were measured and not asked for."""
    drawn = marks(hints, hints.choices[hints.metric])
    pictures = []
    for name, matrix in hints.similarities.items():
        if name not in hints.choices:
            low, high = maps.limits(matrix)
            picture = maps.small_map(matrix, drawn, f"Similarity by {explained.metric(name)}", side_in=1.8)
            pictures.append(figure(picture, f"{explained.metric(name)}; light {low:.2f} to dark {high:.2f}"))
    if not pictures:
        return Html("")
    on_them = "the clusters and hints above" if drawn.labels else "the hints above"
    text = f"The same layers under the metrics that had no say, with {on_them} drawn on them."
    return section("Other metrics", paragraph(text, "soft"), grid(pictures, kind="thumbs"))


_STEPS = (
    ("tapped_forward", "forward pass, with all layers watched"),
    ("metrics", "similarities under all metrics"),
    ("selection", "clusters and hints"),
    ("total", "total"),
    ("stability", "beside that: stability"),
    ("bare_forward", "for comparison: forward pass alone"),
)


def time_section(hints: Hints) -> Html:
    """Return where the time went, also in forward passes where one was timed."""
    seconds = hints.seconds
    bare = seconds.get("bare_forward")
    left_out = () if hints.choices[hints.metric].stability else ("stability",)
    known = [(key, step, seconds[key]) for key, step in _STEPS if seconds.get(key) is not None and key not in left_out]
    longest = max((value for _, _, value in known if value is not None), default=0.0)
    rows = []
    for _, step, value in known:
        taken = float(value or 0.0)
        share = 100 * taken / longest if longest else 0.0
        row = [step, duration(taken), Html(f'<span class="track span" style="width:{share * 2.2:.0f}px"></span>')]
        rows.append([*row, f"{taken / bare:.2f}"] if bare else row)
    columns = [Column("step", number=False), Column("time"), Column("", number=False)]
    columns += [Column("in forward passes alone")] if bare else []
    strong = [i for i, (key, _, _) in enumerate(known) if key == "total"]
    total = seconds.get("total")
    text = f"Choosing took {duration(total)}" if total is not None else ""
    if text and bare and total is not None:
        text += f", {total / bare:.2f} times as long as the forward pass alone over the same images"
    return section("Where the time went", paragraph(f"{text}.") if text else "", table(columns, rows, strong=strong))


def limits_section(hints: Hints) -> Html:
    """Return what each metric is blind to, those that were asked for first."""
    order = [name for name in hints.choices if name in explained.METRIC_LIMITS]
    order += [name for name in explained.METRIC_LIMITS if name in hints.similarities and name not in order]
    items = "".join(f"<dt>{explained.metric(name)}</dt><dd>{explained.METRIC_LIMITS[name]}</dd>" for name in order)
    return section("What the metrics are blind to", Html(f"<dl>{items}</dl>"), paragraph(explained.ALL_METRICS, "soft"))
