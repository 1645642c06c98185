"""What PyTorch's files hold, looked at before PyTorch opens them.

A pickle is a program, and `torch.export.load` unpickles, imports and evaluates what its file says; TorchScript can write
files. So an archive is copied entry by entry, as this module read it, leaving out what could run, and PyTorch is given
the copy: what was checked is what is loaded.
"""

import json
import re
import shutil
import zipfile

from .errors import ExportError

ENTRIES_MAX = 100_000
TEXT_MAX = 256 << 20

# TorchScript that reaches files. Names in its code are checked, not what they are bound to.
SCRIPT_REFUSED = re.compile(r"\b(from_file|save|load|_load_from_file|open|record_stream)\s*\(|torch\.classes|__torch__\.torch\.classes")

# What a program of torch.export may call.
OPERATOR = re.compile(r"torch\.ops\.(aten|prims|torchvision|quantized_decomposed)\.(?!__)[A-Za-z0-9_]+\.[A-Za-z0-9_]+")
BUILTIN = {
    f"{module}.{name}"
    for module in ("_operator", "math")
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "neg", "pow", "eq", "ne", "lt", "le", "gt", "ge",
                 "getitem", "and_", "or_", "not_", "ceil", "floor", "trunc", "sqrt")
} | {"torch.sym_int", "torch.sym_float", "torch.sym_max", "torch.sym_min", "torch.sym_not", "torch.sym_sum", "torch.sym_ite"}
# Sizes as they are written; whoever reads them evaluates the text.
SYMBOL = re.compile(r"Symbol\('([su]\d+|zu[fi]\d+)'(, (positive|integer|nonnegative)=True)*\)")
EXPRESSION = re.compile(r"[\w\s+\-*/(),<>=]*")
EXPRESSION_NAME = re.compile(
    r"[su]\d+|zu[fi]\d+|Integer|Rational|Add|Mul|Pow|FloorDiv|ModularIndexing|Mod|PythonMod|CleanDiv|CeilDiv|Max|Min|Eq|Ne|Gt|"
    r"Ge|Lt|Le"
)
PROGRAM_ENTRIES = re.compile(
    r"models/[\w.-]+\.json|data/weights/([\w.-]+_config\.json|weight_\d+)|data/constants/([\w.-]+_config\.json|tensor_\d+)|"
    r"data/sample_inputs/[\w.-]+\.pt|extra/.*|archive_format|archive_version|byteorder|version|\.data/[\w]+|\.format_version|"
    r"\.storage_alignment"
)


def kind_of(path):
    """"script", "program", "pickle" (weights or a whole model), or "unknown"."""
    if not zipfile.is_zipfile(path):
        with open(path, "rb") as file:
            # Files from before PyTorch 1.6 are bare pickles.
            return "pickle" if file.read(1) == b"\x80" else "unknown"
    names = {entry.filename.split("/", 1)[-1] for entry in entries_of(path)}
    if "constants.pkl" in names or any(name.startswith("code/") for name in names):
        return "script"
    if "archive_format" in names or any(name.startswith("models/") for name in names):
        return "program"
    if "serialized_exported_program.json" in names | {entry.filename for entry in entries_of(path)}:
        raise ExportError("refused", "the .pt2 file is of an old format; save it again with torch.export.save of PyTorch 2.8 or later")
    return "pickle" if "data.pkl" in names else "unknown"


def entries_of(path):
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise ExportError("refused", "the file is damaged or cut short") from error
    names = [entry.filename for entry in entries]
    if len(names) > ENTRIES_MAX or len(set(names)) != len(names):
        raise ExportError("refused", "the file has too many entries, or one of them twice")
    return entries


def copy_script(path, to):
    """Copies a TorchScript archive whose code does nothing but compute."""

    def change(name, read):
        # Where the code goes, the rest is tensors and constants; .debug_pkl is pickled and only for messages.
        if name.endswith(".debug_pkl"):
            return None
        if name.startswith("code/") or name.endswith(".py"):
            code = read().decode("utf-8", "replace")
            found = SCRIPT_REFUSED.search(code)
            if found:
                raise ExportError("refused", f"the TorchScript file calls {found.group().strip(' (')}, which is not for computing")
            return code.encode()
        return False

    copy(path, to, change)


def copy_program(path, to):
    """Copies an archive of torch.export, of which only operators and tensors are left."""

    def change(name, read):
        if not PROGRAM_ENTRIES.fullmatch(name):
            raise ExportError("refused", f"the .pt2 file holds {name!r}, which is no part of a plain exported program")
        if name.startswith("extra/"):
            return None
        if name.endswith(".json"):
            return json.dumps(plain(json.loads(read()))).encode()
        return False

    copy(path, to, change)


def plain(value, key=""):
    """The same JSON without what would be run; refuses what cannot be left out."""
    if isinstance(value, dict):
        if value.get("use_pickle"):
            raise ExportError("refused", "the .pt2 file holds pickled tensors; save it with plain ones")
        return {name: plain(inner, name) for name, inner in value.items()}
    if key == "guards_code":
        # Python source that checks inputs.
        return []
    if isinstance(value, list):
        return [plain(inner, key) for inner in value]
    if isinstance(value, str):
        # What is called for each node, and where it came from.
        if key in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn", "from_node", "custom"):
            return ""
        if key in ("target", "as_operator") and value.startswith(("torch", "_operator", "math", "#")):
            if not OPERATOR.fullmatch(value) and value not in BUILTIN:
                raise ExportError("refused", f"the .pt2 file calls {value[:100]!r}, which is no operator that can be exported")
        if key == "expr_str":
            arithmetic = SYMBOL.sub("s0", value)
            names = re.findall(r"[A-Za-z_]\w*", arithmetic)
            if not EXPRESSION.fullmatch(arithmetic) or not all(EXPRESSION_NAME.fullmatch(name) for name in names):
                raise ExportError("refused", f"the .pt2 file has a size {value[:100]!r} that is no plain arithmetic")
        if "__enum__" in value or "__torch__" in value:
            raise ExportError("refused", "the .pt2 file needs classes of its own")
    return value


def copy(path, to, change):
    """`change(name, read)` gives an entry's new content, False to keep it, None to leave it out."""
    entries_of(path)
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(to, "w", zipfile.ZIP_STORED) as copied:
        for entry in archive.infolist():
            def read(entry=entry):
                if entry.file_size > TEXT_MAX:
                    raise ExportError("refused", "the file's program is larger than 256 MiB")
                with archive.open(entry) as file:
                    return file.read(TEXT_MAX + 1)

            try:
                content = change(entry.filename.split("/", 1)[-1], read)
                if content is False:
                    with archive.open(entry) as source, copied.open(entry.filename, "w", force_zip64=True) as target:
                        shutil.copyfileobj(source, target, 1 << 20)
                elif content is not None:
                    copied.writestr(entry.filename, content)
            except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, EOFError) as error:
                raise ExportError("refused", "the file is damaged or cut short") from error
