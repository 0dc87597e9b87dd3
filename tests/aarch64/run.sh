#!/usr/bin/env bash
# The wheel on another architecture: an arm64 Debian userland under emulation, t2v-edge[cpu] installed there with pip,
# and `t2v-edge doctor` over a bundle's golden vectors. `make test-aarch64` calls it; its times mean nothing.
#
#   tests/aarch64/run.sh --check      only see that all it needs is here
#   tests/aarch64/run.sh BUNDLE       a bundle folder with INT8 graphs
#
# T2V_EDGE_AARCH64   folder of the userland and the downloads (default: t2v-edge-aarch64 in the user's cache folder).
#                    The userland is made once, in minutes, and used again; remove the folder to start anew
# DEBIAN_MIRROR      a mirror (default: debootstrap's own)
# PYTHON             an interpreter with pip and build (default: .venv/bin/python)
#
# The host's pip, with the host's settings and indexes, downloads the wheels for arm64; pip in the userland installs
# from that folder alone. So no setting, password or certificate of the host's goes in, and the userland needs no
# network. Outside of the folder nothing is changed. All mounts are in a namespace of this process, and end with it
# however it ends.
set -euo pipefail

readonly SUITE=bookworm           # Debian 12
readonly PYTHON_VERSION=3.11      # what SUITE has: pip is told what to download for
readonly GLIBC_MINOR=36           # and its glibc is 2.36: wheels for 2.17 to it will do
readonly KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
readonly BINFMT=/proc/sys/fs/binfmt_misc
readonly ARM64_MAGIC=7f454c460201010000000000000000000200b7

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
folder=${T2V_EDGE_AARCH64:-${XDG_CACHE_HOME:-${HOME:?set HOME or T2V_EDGE_AARCH64}/.cache}/t2v-edge-aarch64}
python=${PYTHON:-$root/.venv/bin/python}

say() { printf '%s\n' "aarch64: $*" >&2; }
die() { say "$*"; exit 1; }

# What runs arm64 programs here, empty where the processor does; and whether it must lie in the userland as well.
interpreter=${AARCH64_INTERPRETER-}
copied=${AARCH64_COPIED-}

find_interpreter() {
  [ "$(uname -m)" != aarch64 ] || return 0
  local entry
  for entry in "$BINFMT"/*; do
    if grep -q "^magic $ARM64_MAGIC" "$entry" 2>/dev/null && grep -qx enabled "$entry"; then
      interpreter=$(sed -n 's/^interpreter //p' "$entry")
      grep -q '^flags:.*F' "$entry" || copied=1
      return 0
    fi
  done
  die "this kernel does not run arm64 programs. apt install qemu-user-static binfmt-support; without systemd, as in a" \
    "container: mount -t binfmt_misc binfmt_misc $BINFMT && update-binfmts --enable qemu-aarch64"
}

check() {
  [ "$(id -u)" = 0 ] || die "making a userland needs root: sudo -E make test-aarch64"
  local tool
  for tool in debootstrap:debootstrap unshare:util-linux flock:util-linux chroot:coreutils; do
    command -v "${tool%%:*}" >/dev/null || die "${tool%%:*} is missing: apt install ${tool#*:}"
  done
  [ -f "$KEYRING" ] || die "Debian's keys are missing: apt install debian-archive-keyring"
  find_interpreter
}

# The project's wheel and all that its [cpu] extra needs, for arm64.
download_wheels() {
  rm -rf "$folder/wheels"
  mkdir -p "$folder/wheels"
  "$python" -m build --wheel --outdir "$folder/wheels" "$root" >"$folder/build.log" 2>&1 ||
    die "the wheel was not built ($python -m build), see $folder/build.log; make install brings what it needs"
  local platforms=(--platform manylinux2014_aarch64) minor wheels
  for minor in $(seq 17 "$GLIBC_MINOR"); do
    platforms+=(--platform "manylinux_2_${minor}_aarch64")
  done
  wheels=("$folder"/wheels/t2v_edge-*.whl)
  "$python" -m pip download --quiet --dest "$folder/wheels" --only-binary=:all: --implementation cp \
    --python-version "$PYTHON_VERSION" --abi "cp${PYTHON_VERSION/./}" --abi abi3 --abi none "${platforms[@]}" \
    "${wheels[0]}[cpu]" ||
    die "wheels for arm64 could not be downloaded; see that pip reaches its index: $python -m pip config list"
}

make_userland() {
  if [ ! -d "$userland" ]; then
    say "making $userland, which takes minutes"
    rm -rf "$userland.partial"
    debootstrap --arch=arm64 --foreign --variant=minbase --keyring="$KEYRING" --include=python3-venv \
      "$SUITE" "$userland.partial" ${DEBIAN_MIRROR:+"$DEBIAN_MIRROR"} >"$folder/debootstrap.log" 2>&1 ||
      die "debootstrap failed, see $folder/debootstrap.log; DEBIAN_MIRROR names another mirror"
    copy_interpreter "$userland.partial"
    chroot "$userland.partial" /debootstrap/debootstrap --second-stage >>"$folder/debootstrap.log" 2>&1 ||
      die "debootstrap's second stage failed, see $folder/debootstrap.log"
    mv "$userland.partial" "$userland"
  fi
  copy_interpreter "$userland"
}

copy_interpreter() {
  if [ -n "$copied" ]; then
    mkdir -p "$1$(dirname "$interpreter")"
    cp -L "$interpreter" "$1$interpreter"
  fi
}

# The emulator shows the host's /proc/cpuinfo, and ONNX Runtime, which looks there for what its kernels may use, crashes
# on one that is not Arm's. So it gets that of the processor emulated: of those that QEMU 7.2 knows the nearest to the
# Cortex-A78AE of a Jetson Orin, with the same 8-bit and 16-bit instructions (asimddp, asimdhp) and without SVE.
readonly PROCESSOR=neoverse-n1
describe_processor() {
  local number
  for number in $(seq 0 $(($(nproc) - 1))); do
    printf '%s\t: %s\n' processor "$number" BogoMIPS 50.00 \
      Features "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp" \
      "CPU implementer" 0x41 "CPU architecture" 8 "CPU variant" 0x4 "CPU part" 0xd0c "CPU revision" 1
    echo
  done >"$folder/cpuinfo"
  mount --bind "$folder/cpuinfo" "$userland/proc/cpuinfo"
}

# In namespaces of its own: no mount is seen outside, and all processes end with the first.
inside() {
  exec 9>"$folder/lock"
  flock --nonblock 9 || die "another run uses $folder; wait for it, or set T2V_EDGE_AARCH64"
  userland=$folder/$SUITE-arm64
  download_wheels
  make_userland
  mkdir -p "$userland/mnt/wheels" "$userland/mnt/bundle"
  mount -t proc proc "$userland/proc"
  mount -t sysfs -o ro sysfs "$userland/sys"
  mount --rbind /dev "$userland/dev"
  [ -z "$interpreter" ] || describe_processor
  mount --bind "$folder/wheels" "$userland/mnt/wheels"
  mount --bind "$1" "$userland/mnt/bundle"
  say "installing t2v-edge[cpu] and running its doctor"
  # shellcheck disable=SC2016  # it is the shell in the userland that expands these
  chroot "$userland" /usr/bin/env -i HOME=/root LANG=C.UTF-8 PATH=/usr/local/bin:/usr/bin:/bin \
    T2V_EDGE_CACHE=/tmp/t2v-edge-cache ${interpreter:+"QEMU_CPU=$PROCESSOR"} /bin/sh -euc '
      test "$(uname -m)" = aarch64
      cd /root
      python3 -m venv --clear /opt/t2v-edge
      /opt/t2v-edge/bin/pip install --quiet --disable-pip-version-check --no-index --find-links /mnt/wheels \
        "t2v-edge[cpu]"
      /opt/t2v-edge/bin/t2v-edge doctor /mnt/bundle
    ' 9>&-
}

main() {
  case ${1-} in
    --check) check ;;
    --inside) inside "$2" ;;
    '' | -*) die "give a bundle folder, or --check; see the top of ${BASH_SOURCE[0]}" ;;
    *)
      check
      [ -f "$1/manifest.json" ] || die "$1 is no bundle folder: t2v-edge export checkpoints/small --recipe fast -o $1"
      grep -q '"precision": "int8' "$1/manifest.json" || die "$1 has no INT8 graph: export it with --recipe fast"
      mkdir -p "$folder"
      local started=$SECONDS bundle
      bundle=$(cd "$1" && pwd)
      folder=$(cd "$folder" && pwd)
      # The namespace has a /proc of its own, which does not show what is registered: what was found is handed on.
      T2V_EDGE_AARCH64=$folder AARCH64_INTERPRETER=$interpreter AARCH64_COPIED=$copied \
        unshare --mount --propagation private --pid --fork --kill-child --mount-proc \
        bash "${BASH_SOURCE[0]}" --inside "$bundle" || die "failed on arm64"
      say "passed on arm64 after $((SECONDS - started)) s"
      ;;
  esac
}

main "$@"
