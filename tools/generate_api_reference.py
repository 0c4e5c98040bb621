"""Write `docs/reference/api.md` from the comments in `proto/`.

`--check` writes nothing and fails when the page is stale.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from google.protobuf import descriptor_pb2, text_format

sys.path.insert(0, str(Path(__file__).resolve().parent))
from generate_protos import ROOT, describe

sys.path.insert(0, str(ROOT / "src"))
from buf.validate import validate_pb2

PAGE = ROOT / "docs" / "reference" / "api.md"
INTRODUCTION = """# API reference

Generated from the comments in `proto/` by `tools/generate_api_reference.py`; change them there.

The packages `ai.stigmer.*` are the Stigmer v1 API. What we add to it stands in `agent_runner.v1`, or in
fields numbered from 1000. Errors carry `google.rpc.BadRequest` details where fields of the request are wrong.
"""
Field = descriptor_pb2.FieldDescriptorProto
SCALARS = {value: name.removeprefix("TYPE_").lower() for name, value in Field.Type.items()}


class Comments:
    """Comments of one file, by the paths protoc numbers declarations with."""

    def __init__(self, file: descriptor_pb2.FileDescriptorProto) -> None:
        self._texts = {
            tuple(place.path): " ".join(place.leading_comments.split())
            for place in file.source_code_info.location
        }

    def __call__(self, *path: int) -> str:
        return self._texts.get(path, "")


def anchor(full_name: str) -> str:
    return full_name.lower().replace(".", "-")


def link(type_name: str) -> str:
    name = type_name.lstrip(".")
    short = name.rsplit(".", 1)[-1]
    if name.startswith("google."):
        return f"`{name}`"
    return f"[{short}](#{anchor(name)})"


def type_of(field: Field, maps: dict[str, descriptor_pb2.DescriptorProto]) -> str:
    entry = maps.get(field.type_name)
    if entry is not None:
        return f"map of {type_of(entry.field[0], maps)} to {type_of(entry.field[1], maps)}"
    one = link(field.type_name) if field.type_name else SCALARS[field.type]
    return f"repeated {one}" if field.label == Field.LABEL_REPEATED else one


def rules_of(field: Field) -> str:
    rules = field.options.Extensions[validate_pb2.field]
    told = [f"*{rule.message}*" for rule in [*rules.cel, *rules.repeated.items.cel] if rule.message]
    plain = validate_pb2.FieldRules()
    plain.CopyFrom(rules)
    plain.ClearField("cel")
    if plain.repeated.items.cel:
        plain.ClearField("repeated")
    text = text_format.MessageToString(plain, as_one_line=True).strip()
    return " ".join([*told, *([f"`{text.replace('|', chr(92) + '|')}`"] if text else [])])


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    columns = list(head)
    yield "| " + " | ".join(columns) + " |"
    yield "| " + " | ".join("---" for _ in columns) + " |"
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def heading(full_name: str, what: str, comment: str) -> Iterator[str]:
    yield ""
    yield f'<a id="{anchor(full_name)}"></a>'
    yield f"### {what} {full_name.rsplit('.', 1)[-1]}"
    yield ""
    yield comment
    yield ""


def service_lines(file: descriptor_pb2.FileDescriptorProto, comments: Comments) -> Iterator[str]:
    for i, service in enumerate(file.service):
        yield from heading(f"{file.package}.{service.name}", "Service", comments(6, i))
        yield from table(
            ("method", "takes", "gives", "what it does"),
            (
                (
                    f"`{method.name}`",
                    "stream of " * method.client_streaming + link(method.input_type),
                    "stream of " * method.server_streaming + link(method.output_type),
                    comments(6, i, 2, j),
                )
                for j, method in enumerate(service.method)
            ),
        )


def message_lines(file: descriptor_pb2.FileDescriptorProto, comments: Comments) -> Iterator[str]:
    for i, message in enumerate(file.message_type):
        full = f"{file.package}.{message.name}"
        maps = {f".{full}.{entry.name}": entry for entry in message.nested_type}
        yield from heading(full, "Message", comments(4, i))
        rows = []
        for j, field in enumerate(message.field):
            words = [comments(4, i, 2, j), rules_of(field)]
            if field.HasField("oneof_index") and not field.proto3_optional:
                words.append(f"One of `{message.oneof_decl[field.oneof_index].name}`.")
            rows.append(
                (str(field.number), f"`{field.name}`", type_of(field, maps), " ".join(filter(None, words)))
            )
        yield from table(("no.", "field", "type", "meaning"), rows) if rows else ("No fields.",)


def enum_lines(file: descriptor_pb2.FileDescriptorProto, comments: Comments) -> Iterator[str]:
    for i, enum in enumerate(file.enum_type):
        yield from heading(f"{file.package}.{enum.name}", "Enum", comments(5, i))
        yield from table(
            ("no.", "value", "meaning"),
            ((str(v.number), f"`{v.name}`", comments(5, i, 2, j)) for j, v in enumerate(enum.value)),
        )


def order(package: str) -> tuple[int, str]:
    groups = ("agent_runner", "ai.stigmer.agentic", "ai.stigmer.commons")
    return next((i for i, group in enumerate(groups) if package.startswith(group)), len(groups)), package


def page(files: Iterable[descriptor_pb2.FileDescriptorProto]) -> str:
    packages: dict[str, list[descriptor_pb2.FileDescriptorProto]] = {}
    for file in files:
        if file.package.startswith(("agent_runner", "ai.stigmer")):
            packages.setdefault(file.package, []).append(file)
    lines = [INTRODUCTION]
    lines += [f"- [`{name}`](#{anchor(name)})" for name in sorted(packages, key=order)]
    for name in sorted(packages, key=order):
        lines += ["", f'<a id="{anchor(name)}"></a>', f"## {name}"]
        for part in (service_lines, message_lines, enum_lines):
            for file in sorted(packages[name], key=lambda file: file.name):
                lines += part(file, Comments(file))
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail when the page is stale")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as scratch:
        sources, _ = describe(Path(scratch))
        described = descriptor_pb2.FileDescriptorSet.FromString(sources.read_bytes())
    text = page(described.file)
    fresh = PAGE.exists() and PAGE.read_text(encoding="utf-8") == text
    if check:
        if not fresh:
            print(f"stale: {PAGE.relative_to(ROOT)}; run `make docs`", file=sys.stderr)
        return 0 if fresh else 1
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(text, encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {'unchanged' if fresh else 'changed'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
