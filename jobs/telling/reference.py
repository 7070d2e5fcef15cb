"""The reference of all settings, for people and for editors, made of the settings' own types.

python -m jobs.telling.reference     writes conf/README.md and conf/job.schema.json anew
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jobs.settings import Settings
from udfs.tasks.registry import KINDS, task_options

_CONF = Path(__file__).resolve().parents[2] / "conf"
_HEAD = """# Settings

One YAML file is a job. Unknown keys are refused, and all mistakes are told at once, each with its key.
`--set a.b=value` lays a value over the file's; values are YAML.

Each job here begins with `# yaml-language-server: $schema=job.schema.json`: by that line an editor completes the keys,
shows what they mean, and marks mistakes as a job is typed. Copy it along, with the path to the schema.

This page and the schema are made of the settings' own types by `python -m jobs.telling.reference`.
"""


def make_schema() -> dict[str, Any]:
    """JSON schema of a job's YAML file."""
    made = Settings.model_json_schema()
    made["required"] = [name for name in made["required"] if name != "score"]
    asked = made["$defs"]["ScoreSettings"].pop("required")  # but of requests, which say it themselves
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **made,
        "title": "A gristmill job",
        "if": {"not": {"required": ["models"]}},
        "then": {"required": ["score"], "properties": {"score": {"required": asked}}},
    }


def make_page() -> str:
    """The reference as Markdown."""
    schema = make_schema()
    parts = [_HEAD, "## The jobs here\n", "| job | |", "| --- | --- |", *_tell_jobs()]
    asked = schema["then"]["properties"]["score"]["required"]
    for section, told in schema["properties"].items():
        if "$ref" not in told and "$ref" not in str(told.get("allOf", "")):  # a mapping of the user's own
            parts += [f"\n## `{section}`\n", told["description"]]
            continue
        keys = schema["$defs"][told.get("$ref", "").rpartition("/")[2]]
        parts += [f"\n## `{section}`\n", keys["description"]]
        for title, names in _group(section, list(keys["properties"])):
            parts += [f"\n### {title}\n" if title else "", "| key | values | default | |", "| --- | --- | --- | --- |"]
            required = asked if section == "score" else keys.get("required", [])
            parts += [_tell_key(section, n, keys["properties"][n], schema, required=n in required) for n in names]
        parts += _tell_inner(section, keys, schema)
    return "\n".join(parts).rstrip() + "\n"


def write(folder: Path = _CONF) -> None:
    """Write both files."""
    (folder / "README.md").write_text(make_page(), encoding="utf-8")
    (folder / "job.schema.json").write_text(json.dumps(make_schema(), indent=2) + "\n", encoding="utf-8")


def _tell_inner(section: str, keys: dict[str, Any], schema: dict[str, Any]) -> Iterator[str]:
    """The sections of a section, each under a heading of its own."""
    for name, told in keys["properties"].items():
        for part in told.get("anyOf", ()):
            kind = part.get("$ref", "").rpartition("/")[2]
            if not kind.endswith("Settings"):
                continue
            inner, path = schema["$defs"][kind], f"{section}.{name}"
            yield from (f"\n### `{path}`\n", inner["description"], "")
            yield from ("| key | values | default | |", "| --- | --- | --- | --- |")
            yield from (_tell_key(path, n, key, schema, required=False) for n, key in inner["properties"].items())
            yield from _tell_inner(path, inner, schema)


def _tell_jobs() -> Iterator[str]:
    """Each job of the directory, with the first sentence that it says of itself."""
    for path in sorted(_CONF.glob("*.yaml")):
        comment = [line[2:] for line in path.read_text(encoding="utf-8").splitlines()[:12] if line.startswith("# ")]
        said = " ".join(line for line in comment if not line.startswith(("yaml-language-server", "gristmill ")))
        yield f"| [`{path.name}`]({path.name}) | {said.split('. ')[0].rstrip('.')} |"


def _group(section: str, names: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Keys of a section under headings: those of every task, then those of some tasks alone."""
    owners = {name: tasks for name, (_, tasks) in task_options().items()} if section == "score" else {}
    asked: dict[str, tuple[str, ...]] = dict.fromkeys(
        ("messages", "variants", "variants_as", "schema"), ("text-generation",)
    )
    asked["prompt"] = ("feature-extraction", "text-generation")
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in names:
        groups.setdefault((owners | asked).get(name, ()) if owners else (), []).append(name)
    for tasks in sorted(groups, key=lambda tasks: (len(tasks) > 0, [list(KINDS).index(task) for task in tasks])):
        yield " and ".join([", ".join(tasks[:-1]), tasks[-1]] if len(tasks) > 1 else tasks), groups[tasks]


def _tell_key(section: str, name: str, told: dict[str, Any], schema: dict[str, Any], *, required: bool) -> str:
    default = told.get("default")
    shown = "required" if required else "–" if default is None else f"`{json.dumps(default)}`"
    kinds = " or ".join(_kinds(told, schema)).replace("|", "\\|")
    return f"| `{section}.{name}` | {kinds} | {shown} | {told.get('description', '')} |"


def _kinds(told: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    """What a value may be, in words."""
    if "$ref" in told:
        if told["$ref"].endswith("Settings"):
            return ["mapping, see below"]
        return ["`{" + ", ".join(schema["$defs"][told["$ref"].rpartition("/")[2]]["properties"]) + "}`"]
    if "anyOf" in told:
        shared = {"minimum": told["minimum"]} if "minimum" in told else {}
        return list(dict.fromkeys(kind for part in told["anyOf"] for kind in _kinds(part | shared, schema)))
    if "enum" in told or "const" in told:
        return [", ".join(f"`{value}`" for value in told.get("enum", [told.get("const")]))]
    match told.get("type"):
        case "null":
            return []
        case "array":
            return ["list of " + " or ".join(_kinds(told["items"], schema))]
        case "integer" | "number":
            least = told.get("minimum", told.get("exclusiveMinimum"))
            bound = "" if least is None else f" ≥ {least}" if "minimum" in told else f" > {least}"
            most = f", ≤ {told['maximum']}" if "maximum" in told else ""
            return [f"{told['type']}{bound}{most}"]
        case "object":
            return ["mapping"]
    return [str(told.get("type", "any"))]


if __name__ == "__main__":
    write()
