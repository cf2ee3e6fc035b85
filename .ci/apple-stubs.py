#!/usr/bin/env python3
"""cargo metadata ... | apple-stubs.py LIBSYSTEM SDK: what a linker has to know of Apple's libraries, which may not be copied.

Writes a text stub for each framework and library that the packages link: the names that their source declares in `extern`
blocks. Nothing says whether Apple has them, so a program that links with these stubs is no proof that it runs.

A block with a `link` attribute tells where its names are. The other blocks of a package belong to the library that an empty
block, or its build script, names. What LIBSYSTEM, the linker's own stub, has already is left out.
"""

import json
import re
import sys
from collections import defaultdict
from pathlib import Path

LIBRARIES = {"objc": "libobjc.A.dylib", "iconv": "libiconv.2.dylib"}
COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.S)
BLOCK = re.compile(r'((?:#!?\[[^\[\]]*\]\s*)*)(?:(?:unsafe\s+)?extern\s+(?:"[^"]*"\s*)?|extern_c(?:_unwind)?!\s*)\{')
LINK = re.compile(r'link\(\s*name\s*=\s*"(\w+)"(?:\s*,\s*kind\s*=\s*"(\w+)")?')
BUILD_SCRIPT_LINK = re.compile(r"rustc-link-lib=framework=(\w+)")
NAME = re.compile(r'\bfn\s+(\w+)|\bstatic\s+(?:mut\s+)?(\w+)\s*:|\blink_name\s*=\s*"([\w$]+)"')


def inside(text, begin):
    """The text from `begin` to the brace that closes the one before it."""
    depth = 1
    for brace in re.compile(r"[{}]").finditer(text, begin):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return text[begin : brace.start()]
    return ""


def linked(attributes):
    """The frameworks and libraries that these attributes name, but for those that every system has."""
    return [name for name, kind in LINK.findall(attributes) if kind == "framework" or name in LIBRARIES]


def choose(libraries, name):
    """Of the libraries that a package links, the one that a name belongs to by the look of both."""
    if re.match(r"_*k?CF[A-Z]", name):
        return "CoreFoundation"
    is_of_a_framework = re.match(r"_*k?[A-Z]", name) is not None
    alike = [library for library in libraries if (library not in LIBRARIES) == is_of_a_framework]
    return alike[0] if alike else None


def read(package, stubs):
    """Adds what the source of a package declares."""
    directory = Path(package["manifest_path"]).parent
    named, homeless = [], []
    for path in sorted(directory.rglob("*.rs")):
        text = path.read_text(errors="replace")
        if path.name == "build.rs":
            named += BUILD_SCRIPT_LINK.findall(text)
        if "extern" not in text:
            continue
        text = COMMENT.sub("", text)
        for block in BLOCK.finditer(text):
            libraries = linked(block[1])
            names = [next(filter(None, name)) for name in NAME.findall(inside(text, block.end()))]
            if libraries and not names:
                named += libraries
            elif libraries:
                for library in libraries:
                    stubs[library].update(names)
            else:
                homeless += names
    for library in named:
        stubs[library]
    for name in homeless if named else []:
        library = choose(named, name)
        if library:
            stubs[library].add(name)


def write(path, install_name, names):
    symbols = ", ".join(sorted(f"'_{name}'" for name in names))
    targets = "[ x86_64-macos, arm64-macos ]"
    text = f"""--- !tapi-tbd
tbd-version: 4
targets: {targets}
install-name: '{install_name}'
exports:
  - targets: {targets}
    symbols: [ {symbols} ]
...
"""
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def main():
    system, sdk = Path(sys.argv[1]), Path(sys.argv[2])
    known = set(re.findall(r"\b_(\w+)", system.read_text()))
    stubs = defaultdict(set)
    for package in json.load(sys.stdin)["packages"]:
        read(package, stubs)
    for library, names in stubs.items():
        names -= known
        if library in LIBRARIES:
            write(sdk / f"usr/lib/lib{library}.tbd", f"/usr/lib/{LIBRARIES[library]}", names)
        else:
            framework = f"System/Library/Frameworks/{library}.framework"
            write(sdk / framework / f"{library}.tbd", f"/{framework}/Versions/A/{library}", names)


main()
