"""Names of images: the repository, and what a template makes of them."""

from __future__ import annotations

from string import Template

from airflow_multideploy.platforms.onprem.http_judge import Values


def repository_of(image: str) -> str:
    name = image.partition("@")[0]
    tail = name.rsplit("/", 1)[-1]
    return name.removesuffix(f":{tail.partition(':')[2]}") if ":" in tail else name


def completed(values: Values, repository: str = "") -> Values:
    """The values with what follows from them: an image holds version and digest, and they make an image."""
    values = dict(values)
    if image := values.get("image"):
        tag, digest = (
            image.partition("@")[0].removeprefix(repository_of(image)).removeprefix(":"),
            image.partition("@")[2],
        )
        values |= {
            name: value for name, value in (("version", tag), ("digest", digest)) if value and name not in values
        }
    elif repository and values.get("version"):
        values["image"] = f"{repository}:{values['version']}"
    elif repository and values.get("digest"):
        values["image"] = f"{repository}@{values['digest']}"
    return values


def inverted(template: str, text: str) -> Values:
    """The values that make this template this text; none when it does not fit.

    Where several would, the first ones are the longest. Each part between two values is looked for once, from the end:
    a text of others is no pattern's to try.
    """
    literals, names = [""], list[str]()
    end = 0
    for match in Template.pattern.finditer(template):
        literals[-1] += template[end : match.start()]
        end = match.end()
        if name := match["named"] or match["braced"]:
            names.append(name)
            literals.append("")
        else:
            literals[-1] += "$"
    literals[-1] += template[end:]
    values: Values = {}
    end = len(text) - len(literals[-1])
    if not text.endswith(literals[-1]) or "\n" in text:
        return {}
    for number in range(len(names) - 1, -1, -1):
        before = literals[number]
        at = text.rfind(before, 0, max(0, end - 1)) if number else 0
        start = at + len(before)
        found = text[start:end]
        if at < 0 or not found or not text.startswith(before, at) or values.setdefault(names[number], found) != found:
            return {}
        end = at
    return values
