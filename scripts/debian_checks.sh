# Checks in file systems of Debian releases.  Sourced by check.sh.
#
# They need root, debootstrap and Linux 6.7, and for another architecture
# qemu-user-static.  debootstrap makes each file system once, in
# build-tests/debian, from DEBIAN_MIRROR if that is set.  A check runs in
# namespaces of its own, in a layer over the file system that is in memory.  It
# changes nothing outside, not even binfmt_misc.

DEBIAN="$WORK/debian"
DEBIAN_SUITES=(bookworm trixie forky) # with Python 3.11, 3.13 and 3.14

# What a file system has besides the minimum of the release: for building the
# package, for using a wheel, or nothing but certificates.
# shellcheck disable=SC2054
declare -A DEBIAN_PACKAGES=(
    [build]=python3,python3-venv,python3-dev,gcc,libc6-dev,pkg-config
    [use]=python3,python3-venv
    [bare]=ca-certificates
)
DEBIAN_PACKAGES[build]+=,libevent-dev,libssl-dev,libcurl4-openssl-dev

# -- Inside the namespaces ----------------------------------------------------

# Is it Debian's name of this machine's architecture?
inside_is_native() {
    [ "$1" = "$(dpkg --print-architecture)" ]
}

# Print the file that tells the kernel to run an architecture's programs by qemu.
inside_format() {
    local machine=$1
    case $machine in
    amd64) machine=x86_64 ;;
    arm64) machine=aarch64 ;;
    esac
    echo "/usr/lib/binfmt.d/qemu-$machine.conf"
}

# inside_mount ROOT ARCH: mount what programs expect, and let the kernel run
# programs of another architecture.
inside_mount() {
    mount -t proc proc "$1/proc"
    mount --rbind /dev "$1/dev"
    mount --rbind /sys "$1/sys"
    mount -t tmpfs -o mode=1777 tmpfs "$1/dev/shm"
    if ! inside_is_native "$2"; then
        mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
        cat "$(inside_format "$2")" >/proc/sys/fs/binfmt_misc/register
    fi
}

# inside_run ROOT ARCH USER FILES PREFIX ONLINE OFFLINE: put FILES into the file
# system, and the folder PREFIX, if any, where it is here.  Run two shell
# commands as USER, the second one without a network.
inside_run() {
    local root=$1 arch=$2 user=$3 files=$4 prefix=$5 online=$6 offline=$7
    local layer="$1.layer" home=/home/user enter
    mount -t tmpfs tmpfs "$layer"
    mkdir "$layer/over" "$layer/work"
    mount -t overlay overlay "$root" \
        -o "userxattr,lowerdir=$root,upperdir=$layer/over,workdir=$layer/work"
    inside_mount "$root" "$arch"
    cp -r "$files/." "$root"
    cp /etc/resolv.conf "$root/etc/"
    chown -R 1000:1000 "$root/home/user"
    if [ -n "$prefix" ]; then
        chmod a+x "$root/root" # it may be there
        mkdir -p "$root$prefix"
        mount --bind "$prefix" "$root$prefix"
    fi
    [ "$user" != root ] || home=/root
    enter=(chroot --userspec="$user" "$root" env -i HOME="$home"
        PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8
        bash -euc)
    "${enter[@]}" "$online"
    unshare --net bash -euc '
        ip link set lo up
        mount -t sysfs sysfs "$1/sys" # of this network
        shift
        exec "$@"' bash "$root" "${enter[@]}" "$offline"
}

# -- File systems -------------------------------------------------------------

# in_namespaces FUNCTION ARGUMENTS...: call a function inside_... as root of new
# namespaces.
in_namespaces() {
    local pipes pid status=0
    pipes=$(mktemp -d)
    mkfifo "$pipes/made" "$pipes/mapped"
    exec 8<>"$pipes/made" 9<>"$pipes/mapped"
    rm -r "$pipes"
    # shellcheck disable=SC2046
    setpriv --pdeathsig KILL unshare --user --mount --pid --fork --kill-child \
        bash -euo pipefail -c "$(declare -f $(compgen -A function inside_))"'
        echo >&8
        read -r -u 9
        exec 8>&- 9>&-
        "$@"' bash "$@" &
    pid=$!
    if read -r -t 60 -u 8; then
        echo "0 0 65536" >"/proc/$pid/uid_map"
        echo "0 0 65536" >"/proc/$pid/gid_map"
        echo >&9
    else
        kill "$pid" 2>/dev/null || true
    fi
    exec 8>&- 9>&-
    wait $pid || status=$?
    return $status
}

need_debian() {
    local tool
    [ "$(id -u)" = 0 ] || skip "this check needs root"
    for tool in debootstrap unshare setpriv ip; do
        command -v "$tool" >/dev/null || skip "$tool is not installed"
    done
    inside_is_native "$1" || [ -e "$(inside_format "$1")" ] ||
        skip "qemu-user-static is not installed"
}

# debian_unpack ROOT: unpack all packages that debootstrap has downloaded, and
# write what Python needs of the files that their scripts would write.  An
# emulated processor would take minutes for these scripts.
debian_unpack() {
    local package share="$1/usr/share"
    for package in "$1"/var/cache/apt/archives/*.deb; do
        dpkg-deb --fsys-tarfile "$package" |
            tar -C "$1" -xf - --keep-directory-symlink
    done
    [ ! -L "$1/proc" ] || rm "$1/proc" # debootstrap's link to our own
    mkdir -p "$1/proc"
    cp "$share/base-passwd/passwd.master" "$1/etc/passwd"
    cp "$share/base-passwd/group.master" "$1/etc/group"
    cp "$share/libc-bin/nsswitch.conf" "$1/etc/"
    say "127.0.0.1 localhost" >"$1/etc/hosts"
    mkdir -p "$1/etc/ssl/certs" # pip reads them when it starts
    cat "$share"/ca-certificates/mozilla/*.crt \
        >"$1/etc/ssl/certs/ca-certificates.crt"
}

# debian_make ROOT SUITE ARCH KIND: make the file system unless it exists.
debian_make() {
    local root=$1 foreign=() script=/usr/share/debootstrap/scripts/$2
    [ ! -e "$root.made" ] || return 0
    [ -e "$script" ] || script=${script%/*}/sid # newer than debootstrap
    inside_is_native "$3" || foreign=(--foreign)
    rm -rf "$root"
    mkdir -p "$root" "$root.layer"
    debootstrap --arch="$3" "${foreign[@]}" --variant=minbase \
        --include="${DEBIAN_PACKAGES[$4]}" \
        "$2" "$root" "${DEBIAN_MIRROR:-}" "$script" >"$root.log" 2>&1 || {
        tail -n 20 "$root.log" | without_urls >&2
        return 1
    }
    if ! inside_is_native "$3"; then
        debian_unpack "$root"
    fi
    rm -f "$root"/var/cache/apt/archives/*.deb
    echo user:x:1000:1000::/home/user:/bin/bash >>"$root/etc/passwd"
    echo user:x:1000: >>"$root/etc/group"
    touch "$root.made"
}

# Print the value of a setting that pip has here, if any.
pip_setting() {
    "$(find_python)" -m pip config list |
        sed -n -E "s/^[^.]*\.$1='(.*)'\$/\1/p" | head -n 1
}

# Make pip use the same index as here in the file system that gets these files.
# An index of files stays behind.
pip_configure() {
    local files=$1 name value
    mkdir -p "$files/etc/ssl"
    say "[global]" >"$files/etc/pip.conf"
    for name in index-url extra-index-url trusted-host proxy cert; do
        value=$(pip_setting "$name")
        if [ "$name" = cert ] && [ -n "$value" ]; then
            cp "$value" "$files/etc/ssl/pip.pem"
            value=/etc/ssl/pip.pem
        fi
        case $value in
        "" | file:*) ;;
        *) say "$name = $value" >>"$files/etc/pip.conf" ;;
        esac
    done
}

# debian_run SUITE ARCH KIND USER PREFIX ONLINE OFFLINE [WHEEL...]: run commands
# there (inside_run), with a copy of the checkout in ~/vllm_nixl and the wheels
# in /wheels.
debian_run() {
    local suite=$1 arch=$2 kind=$3 user=$4 prefix=$5 online=$6 offline=$7
    local root="$DEBIAN/$suite-$arch-$kind" files status=0
    shift 7
    debian_make "$root" "$suite" "$arch" "$kind"
    files=$(mktemp -d)
    pip_configure "$files"
    mkdir -p "$files/wheels" "$files/home/user/vllm_nixl"
    [ $# = 0 ] || cp "$@" "$files/wheels"
    git -C "$ROOT" ls-files -z --cached --others --exclude-standard |
        tar -C "$ROOT" --null -T - -cf - |
        tar -C "$files/home/user/vllm_nixl" -xf -
    in_namespaces inside_run "$root" "$arch" "$user" "$files" "$prefix" \
        "$online" "$offline" || status=$?
    rm -rf "$files"
    return $status
}

# -- Checks -------------------------------------------------------------------

# check_debian SUITE [ARCH]: build the package in that release and run the smoke
# tests with its Python.
check_debian() {
    local arch=${2:-$(dpkg --print-architecture)}
    need_debian "$arch"
    debian_run "$1" "$arch" build user "" '
        cd ~/vllm_nixl
        . /etc/os-release
        echo "$PRETTY_NAME, $(uname -m), $(gcc --version | head -n 1)"
        . scripts/common.sh
        probe=$(python_probe python3)
        scripts/check.sh other_python "${probe%% *}" python3' true
}

# check_debian_demo SUITE: as root, where nothing is installed, install and build
# everything and run the demo.
check_debian_demo() {
    local arch
    arch=$(dpkg --print-architecture)
    need_debian "$arch"
    debian_run "$1" "$arch" bare root "" '
        cd /home/user/vllm_nixl
        ./run_demo.sh --yes
        echo "run_demo.sh took $SECONDS s"' true
}

# check_wheels_on WHEELS SUITE [ARCH] [PYTHON]: install the wheel of a folder as
# an ordinary user does, where there is no compiler and no library, and take the
# first steps with it.  PYTHON: one of this machine instead of the release's.
check_wheels_on() {
    local arch=${3:-$(dpkg --print-architecture)} python=python3 prefix=""
    need_debian "$arch"
    if [ $# = 4 ]; then
        python=$4
        prefix=$("$4" -c 'import sys; print(sys.base_prefix)')
    fi
    debian_run "$2" "$arch" use user "$prefix" "
        export PIP_DISABLE_PIP_VERSION_CHECK=1
        $python -m venv ~/venv
        ~/venv/bin/pip install -q --no-index --find-links /wheels vllm_nixl
        ~/venv/bin/pip install -q --only-binary :all: numpy libucx-cu12" '
        ~/venv/bin/python ~/vllm_nixl/scripts/first_steps.py' "$1"/*.whl
}

# check_wheels WHEELS: the releases on both architectures, and this machine's
# other Pythons on its own release.  Ends with a table.
check_wheels() {
    local wheels=$1 native arch suite python log status=0 runs=() run
    native=$(dpkg --print-architecture)
    for arch in "$native" amd64 arm64; do
        for suite in "${DEBIAN_SUITES[@]}"; do
            case " ${runs[*]} " in *" $suite|$arch| "*) continue ;; esac
            runs+=("$suite|$arch|")
        done
    done
    suite=$(. /etc/os-release && say "$VERSION_CODENAME")
    while read -r _ python; do
        runs+=("$suite|$native|$python")
    done < <(find_other_pythons /usr/bin/python3)
    mkdir -p "$DEBIAN"
    log="$DEBIAN/wheels.log"
    : >"$log.table"
    for run in "${runs[@]}"; do
        IFS='|' read -r suite arch python <<<"$run"
        say "== $suite $arch $python"
        if "$0" wheels_on "$wheels" "$suite" "$arch" ${python:+"$python"} \
            2>&1 | tee "$log"; then
            debian_row "$suite $arch" "$log" >>"$log.table"
        else
            status=1
            say "$suite $arch $python: FAILED: $(tail -n 1 "$log")" \
                >>"$log.table"
        fi
    done
    say "=="
    cat "$log.table"
    return $status
}

# debian_row LABEL LOG: what first_steps.py found, in one line.
debian_row() {
    sed -n -E -e "s/^system: (.*) \(.*/$1: \1/p" \
        -e 's/^import: (.*) \(.*/import in \1/p' \
        -e 's/^(quick start): (.*)/\1 \2/p' "$2" | paste -s -d ';' |
        sed 's/;/; /g'
}
