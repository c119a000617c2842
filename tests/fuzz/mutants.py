"""The guard with one check less, or with a mistake: what fuzzing must find."""

import sys
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import shared

#: By name: the module, and what of its text is replaced by what.
MUTANTS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "paths may lead upwards": (("zip_names", 'if ".." in parts:', "if False:"),),
    "backslashes": (("zip_names", 'if "\\\\" in name:', "if False:"),),
    "colons": (("zip_names", 'if ":" in name:', "if False:"),),
    "control characters": (("zip_names", "if _CONTROL.search(bare):", "if False:"),),
    "any depth": (("zip_names", "if len(parts) > depth:", "if False:"),),
    "names of any length": (("zip_names", "any(len(part.encode()) > name_bytes for part in parts)", "False"),),
    "case counts in ASCII": (("zip_names", "return part.lower()", "return part"),),
    "case counts elsewhere": (("zip_names", ".casefold()", ""),),
    "accents' form counts": (
        ("zip_names", 'unicodedata.normalize("NFC", unicodedata.normalize("NFD", part).casefold())', "part.casefold()"),
    ),
    "a file may be there twice": (("zip_names", "        elif folded in self._files:", "        elif False:"),),
    "a file may lie in a file": (("zip_names", "        if folded in self._files:", "        if False:"),),
    "a folder's file may come later": (("zip_names", "elif folded in self._folders:", "elif False:"),),
    "links and devices": (("zipguard", "kind not in (0, stat.S_IFREG, stat.S_IFDIR)", "False"),),
    "encrypted": (("zipguard", "if record.flags & zip_records.ENCRYPTED_FLAGS:", "if False:"),),
    "sizes that lie": (
        ("zipguard", "if given > record.size:", "if False:"),
        ("zipguard", "if given != record.size:", "if False:"),
    ),
    "any checksum": (("zipguard", "if crc != record.crc:", "if False:"),),
    "any size in all": (("zipguard", "if total > limits.total_bytes:", "if False:"),),
    "any ratio": (("zipguard", "if total > limits.ratio_from and", "if False and"),),
    "no file at all": (("zipguard", "if not files:", "if False:"),),
    "overlapping": (
        ("zipguard", "if starts[next_] < ends[one]:", "if False:"),
        ("zip_records", "if begin + name_size + extra_size + record.packed > next_at:", "if False:"),
        ("zip_records", "    if not is_there:\n", "    if True:\n"),
        ("zip_records", "        if gap:\n", "        if False:\n"),
    ),
    "two names": (("zip_records", "if more[:name_size] != record.name or", "if"),),
    "two ends": (("zip_records", "if len(exact) > 1 or (exact and marks[-1] != exact[0]):", "if False:"),),
    "broken data is no reason": (("zipguard", "    except zlib.error as error:", "    except KeyError as error:"),),
    "an extra field's length is believed": (
        ("zip_records", "if at + 4 + size > len(extra):", "if False:"),
        ("zip_records", "if len(field) < 5 or field[0] != 1 or", "if field[0] != 1 or"),
    ),
}  # fmt: skip


def guard(name: str) -> ModuleType:
    """Return the guard's module as the mutant *name* has it; the real one stays as it is."""
    changes = MUTANTS[name]
    made: dict[str, ModuleType] = {}
    with patch.dict(sys.modules), patch.dict(shared.__dict__):
        for module in ("zip_records", "zip_names", "zipguard"):
            text = Path(shared.__path__[0], f"{module}.py").read_text()
            for _, old, new in (change for change in changes if change[0] == module):
                assert old in text, f"{name}: there is no {old!r} in {module} any more"
                text = text.replace(old, new, 1)
            made[module] = sys.modules[f"shared.{module}"] = ModuleType(f"shared.{module}")
            setattr(shared, module, made[module])
            exec(compile(text, f"mutant {module}", "exec"), made[module].__dict__)
    return made["zipguard"]
