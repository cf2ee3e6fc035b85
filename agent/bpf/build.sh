#!/bin/sh
# Compiles the probe. `prebuilt/probe.bpf.o` is what the agent carries; it serves x86_64 and aarch64 alike, since the
# probe reads no registers and the loader relocates every field.
#
#   agent/bpf/build.sh           writes prebuilt/probe.bpf.o
#   agent/bpf/build.sh --check   fails if it is not what the source makes (needs clang-14, llvm-14, libbpf-dev)
set -eu
cd "$(dirname "$0")"
out=prebuilt/probe.bpf.o
if [ "${1:-}" = --check ]; then
	out=$(mktemp)
	trap 'rm -f "$out"' EXIT
fi
clang-14 -target bpf -mcpu=v3 -O2 -g -Wall -Werror -Wno-unused-function -fdebug-compilation-dir=. \
	-D__TARGET_ARCH_x86 -I"/usr/include/$(uname -m)-linux-gnu" -c probe.bpf.c -o "$out"
# Types are needed to relocate, line tables are not.
llvm-strip-14 -g "$out"
if [ "${1:-}" = --check ]; then
	cmp "$out" prebuilt/probe.bpf.o || {
		echo "agent/bpf/prebuilt/probe.bpf.o is not what probe.bpf.c makes: run agent/bpf/build.sh" >&2
		exit 1
	}
	echo "prebuilt/probe.bpf.o is what probe.bpf.c makes"
fi
