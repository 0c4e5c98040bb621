"""Generate the Python messages and stubs from `proto/` into `src/`.

`--check` writes nothing and fails when what is committed differs from what would be generated.

The rules of protovalidate (`buf/validate/validate.proto`) come from the descriptor inside the
installed `protovalidate`, so they always match the library that evaluates them.
"""

from __future__ import annotations

import argparse
import ast
import filecmp
import importlib.util
import shutil
import sys
import tempfile
from pathlib import Path

from google.protobuf import descriptor_pb2
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTO = ROOT / "proto"
SOURCE = ROOT / "src"
VALIDATE = "buf/validate/validate.proto"
SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")


def validate_descriptor() -> descriptor_pb2.FileDescriptorProto:
    """Read the serialized descriptor out of the installed protovalidate, without running it."""
    package = importlib.util.find_spec("protovalidate")
    if package is None or package.origin is None:
        raise SystemExit("protovalidate is not installed; run `make setup` first")
    module = Path(package.origin).parent / "_gen" / "buf" / "validate" / "validate_pb.py"
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "file_desc":
            literal = node.args[0]
            if isinstance(literal, ast.Constant) and isinstance(literal.value, bytes):
                return descriptor_pb2.FileDescriptorProto.FromString(literal.value)
    raise SystemExit(f"{module.name} holds no descriptor; this protovalidate is laid out differently")


def well_known_protos() -> Path:
    package = importlib.util.find_spec("grpc_tools")
    assert package is not None and package.origin is not None
    return Path(package.origin).parent / "_proto"


def run_protoc(*arguments: str) -> None:
    if protoc.main(["protoc", *arguments]) != 0:
        raise SystemExit("protoc failed")


def describe(scratch: Path) -> tuple[Path, Path]:
    """Compile the sources into descriptor sets below `scratch`.

    Returns:
        The set of our files with comments and all they import, and the set of the imports alone.
    """
    known = scratch / "known.binpb"
    run_protoc(
        f"-I{well_known_protos()}",
        "--include_imports",
        f"--descriptor_set_out={known}",
        *(
            f"google/protobuf/{name}.proto"
            for name in ("any", "descriptor", "duration", "empty", "field_mask", "struct", "timestamp")
        ),
    )
    everything = descriptor_pb2.FileDescriptorSet.FromString(known.read_bytes())
    everything.file.append(validate_descriptor())
    imports = scratch / "imports.binpb"
    imports.write_bytes(everything.SerializeToString())
    # protoc takes sources and described imports together only from one descriptor set.
    sources = scratch / "sources.binpb"
    run_protoc(
        f"-I{PROTO}",
        f"--descriptor_set_in={imports}",
        "--include_imports",
        "--include_source_info",
        f"--descriptor_set_out={sources}",
        *proto_files(),
    )
    return sources, imports


def proto_files() -> list[str]:
    return sorted(str(path.relative_to(PROTO)) for path in PROTO.rglob("*.proto"))


def generate(target: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        sources, imports = describe(Path(scratch))
        run_protoc(
            f"-I{PROTO}",
            f"--descriptor_set_in={imports}",
            f"--python_out={target}",
            f"--mypy_out=quiet:{target}",
            VALIDATE,
        )
        run_protoc(
            f"--descriptor_set_in={sources}",
            f"--python_out={target}",
            f"--grpc_python_out={target}",
            f"--mypy_out=quiet:{target}",
            f"--mypy_grpc_out=quiet:{target}",
            *proto_files(),
        )
    for stub in target.rglob("*_pb2_grpc.py"):
        if "def add_" not in stub.read_text(encoding="utf-8"):
            stub.unlink()
            stub.with_suffix(".pyi").unlink(missing_ok=True)


def generated_files(root: Path) -> set[Path]:
    return {path.relative_to(root) for path in root.rglob("*") if path.name.endswith(SUFFIXES)}


def stale(fresh: Path) -> list[Path]:
    wanted, present = generated_files(fresh), generated_files(SOURCE)
    differing = {
        path for path in wanted & present if not filecmp.cmp(fresh / path, SOURCE / path, shallow=False)
    }
    return sorted((wanted ^ present) | differing)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail when generated code is stale")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as scratch:
        fresh = Path(scratch)
        generate(fresh)
        differing = stale(fresh)
        if check:
            for path in differing:
                print(f"stale: src/{path}; run `make protos`", file=sys.stderr)
            return 1 if differing else 0
        for path in generated_files(SOURCE) - generated_files(fresh):
            (SOURCE / path).unlink()
        for path in sorted(generated_files(fresh)):
            (SOURCE / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(fresh / path, SOURCE / path)
    print(f"{len(differing)} generated files changed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
