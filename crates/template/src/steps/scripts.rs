//! Scripts of steps inside a sandbox. Their arguments are environment variables: nothing is ever quoted into a script.
//! They run as root, in bash; `PROVISION` in the shell of the image. They leave no temporary files.

/// Unpacks `ARCHIVE`, whose files are those of `SOURCE`, and copies its `FROM` to `TO` (absolute; ends with a slash if it must be a directory) for `OWNER`, with `MODE` if
/// that is not empty; without an `OWNER`, files keep theirs. The rules are Docker's: contents of directories are merged, a single file may be renamed. Directories that exist
/// keep their owner and mode, also behind a symbolic link; files and links in the way of a file are replaced, not written through.
pub const COPY: &str = r#"
set -euo pipefail
shopt -s dotglob nullglob
umask 022
unpacked=$(mktemp -d /tmp/.copy-XXXXXXXX)
trap 'rm -rf -- "$unpacked" "$ARCHIVE"' EXIT
if [[ -z $OWNER ]]; then
    tar -x -p -f "$ARCHIVE" -C "$unpacked"
else
    tar -x -o -f "$ARCHIVE" -C "$unpacked"
    # Tried on one directory first: of many files, each would be a line of errors.
    if ! refusal=$(chown -h -- "$OWNER" "$unpacked" 2>&1); then
        [[ $refusal != *'Invalid argument' ]] || refusal="user and group ids in a sandbox are 0 to 65535"
        echo "COPY: the files cannot belong to $OWNER: $refusal" >&2
        exit 1
    fi
    chown -hR -- "$OWNER" "$unpacked"
fi
[[ -z $MODE ]] || chmod -R -- "$MODE" "$unpacked"

make_directory() {
    local path=${1%/} missing=()
    while [[ -n $path && ! -d $path ]]; do missing+=("$path"); path=${path%/*}; done
    ((${#missing[@]})) || return 0
    mkdir -p -- "$1"
    [[ -z $OWNER ]] || chown -h -- "$OWNER" "${missing[@]}"
}

# Copies files, each to the directory $1, in place of what is there.
copy_files() {
    local target=$1 one stale=()
    shift
    (($#)) || return 0
    for one; do
        one=$target/${one##*/}
        if [[ -d $one && ! -L $one ]]; then
            echo "COPY: $one is a directory, and what is to be copied there is none" >&2
            exit 1
        fi
        if [[ -e $one || -L $one ]]; then stale+=("$one"); fi
    done
    # In parts, because there may be more than fit into the arguments of a program.
    ((${#stale[@]} == 0)) || printf '%s\0' "${stale[@]}" | xargs -0 rm -f --
    printf '%s\0' "$@" | xargs -0 sh -c 'target=$1; shift; exec cp -a -- "$@" "$target/"' sh "$target"
}

# Copies the contents of the directory $1 into the directory $2.
merge() {
    local source=$1 target=${2%/} entry files=()
    for entry in "$source"/*; do
        if [[ ! -d $entry || -L $entry ]]; then
            files+=("$entry")
        elif [[ -d $target/${entry##*/} ]]; then
            merge "$entry" "$target/${entry##*/}"
        elif [[ -e $target/${entry##*/} || -L $target/${entry##*/} ]]; then
            echo "COPY: $target/${entry##*/} is no directory, and what is to be copied there is one" >&2
            exit 1
        else
            cp -a -- "$entry" "$target/"
        fi
    done
    copy_files "$target" "${files[@]}"
}

cd -- "$unpacked"
from=${FROM#/}
[[ -n $from ]] || from=.
if [[ -e $from || -L $from ]]; then
    found=("$from")
else
    IFS=
    found=($from)
fi
if ((${#found[@]} == 0)); then
    # As in Docker, a pattern may match nothing.
    [[ $FROM != *[*?[]* ]] || exit 0
    echo "COPY: there is no file $FROM in $SOURCE" >&2
    exit 1
fi
if ((${#found[@]} == 1)) && [[ ! -d ${found[0]} || -L ${found[0]} ]] && [[ $TO != */ && ! -d $TO ]]; then
    make_directory "$(dirname -- "$TO")"
    rm -f -- "$TO"
    cp -a -- "${found[0]}" "$TO"
    exit
fi
make_directory "$TO"
for one in "${found[@]}"; do
    if [[ -d $one && ! -L $one ]]; then merge "$one" "$TO"; else copy_files "${TO%/}" "$one"; fi
done
"#;

/// Creates the directory `DIR` and its missing parents, for `OWNER`.
pub const WORKDIR: &str = r#"
set -euo pipefail
path=${DIR%/} missing=()
while [[ -n $path && ! -d $path ]]; do missing+=("$path"); path=${path%/*}; done
((${#missing[@]})) || exit 0
mkdir -p -- "$DIR"
chown -h -- "$OWNER" "${missing[@]}"
"#;

/// Creates the user `NAME` with a home unless it is a number and, if `SUDO` is `true`, gives it the right to become root. `GROUP`, if not
/// empty, must exist or be a number.
pub const USER: &str = r#"
set -euo pipefail
for id in "$NAME" "$GROUP"; do
    if [[ $id =~ ^[0-9]+$ ]] && ((10#$id > 65534)); then
        echo "users and groups of sandboxes have ids up to 65534, not $id" >&2
        exit 1
    fi
done
if [[ -n $GROUP && ! $GROUP =~ ^[0-9]+$ ]] && ! cut -d: -f1 /etc/group | grep -qxF -- "$GROUP"; then
    echo "there is no group $GROUP" >&2
    exit 1
fi
if [[ ! $NAME =~ ^[0-9]+$ ]] && ! id -u -- "$NAME" >/dev/null 2>&1; then
    if command -v useradd >/dev/null; then
        useradd --create-home --shell /bin/bash -- "$NAME"
    else
        adduser -D -s /bin/bash "$NAME"
    fi
    chmod 0755 "$(awk -F: -v name="$NAME" '$1 == name { print $6 }' /etc/passwd)"
fi
if [[ $SUDO == true ]]; then
    mkdir -p /etc/sudoers.d
    if [[ $NAME =~ ^[0-9]+$ ]]; then who=#$NAME; else who=$NAME; fi
    printf '%s ALL=(ALL) NOPASSWD: ALL\n' "$who" > "/etc/sudoers.d/${NAME//./_}"
    chmod 0440 "/etc/sudoers.d/${NAME//./_}"
fi
"#;

/// Prepares a container image as a template: installs the shell, tools and network files that every sandbox has, and creates the user
/// `user`. Packages come from the image's distribution. Packages that cannot be installed are reported; only bash is required.
pub const PROVISION: &str = r#"
set -u
PATH=$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
have() { command -v "$1" >/dev/null 2>&1; }
missing() { for one in "$@"; do have "${one%%=*}" || printf '%s ' "${one##*=}"; done; }
if have apt-get; then
    wanted=$(missing bash=bash sudo=sudo curl=curl git=git ss=iproute2 pgrep=procps tar=tar update-ca-certificates=ca-certificates)
    install() { export DEBIAN_FRONTEND=noninteractive; apt-get -q update && apt-get -q install -y --no-install-recommends "$@" && rm -rf /var/lib/apt/lists/*; }
elif have apk; then
    wanted=$(missing bash=bash sudo=sudo curl=curl git=git ss=iproute2 pgrep=procps useradd=shadow update-ca-certificates=ca-certificates)
    install() { apk add --no-cache "$@"; }
elif have dnf; then
    wanted=$(missing bash=bash sudo=sudo curl=curl git=git ss=iproute pgrep=procps-ng tar=tar useradd=shadow-utils)
    install() { dnf install -y "$@"; }
elif have pacman; then
    wanted=$(missing bash=bash sudo=sudo curl=curl git=git ss=iproute2 pgrep=procps-ng tar=tar)
    install() { pacman -Sy --noconfirm "$@"; }
else
    wanted=$(missing bash=bash sudo=sudo curl=curl tar=tar)
    install() { return 1; }
fi
printf '127.0.0.1\tlocalhost sandbox\n::1\tlocalhost ip6-localhost ip6-loopback\n' > /etc/hosts
echo sandbox > /etc/hostname
rm -f /etc/resolv.conf
echo 'nameserver 8.8.8.8' > /etc/resolv.conf
if [ -n "$wanted" ]; then
    echo "installing $wanted"
    # shellcheck disable=SC2086
    install $wanted || echo "could not be installed: $wanted" >&2
fi
if ! have bash; then
    echo "the image has no bash and none could be installed; use an image with bash" >&2
    exit 1
fi
[ -e /bin/bash ] || ln -s "$(command -v bash)" /bin/bash
"#;

/// Creates the user that clients rely on, as in `base`.
pub const DEFAULT_USER: &str = r#"
set -euo pipefail
if ! id -u user >/dev/null 2>&1; then
    if command -v useradd >/dev/null; then
        # 1000 where it is free: files from elsewhere then belong to the right one.
        useradd --create-home --shell /bin/bash $(getent passwd 1000 >/dev/null || echo --uid 1000) user
    else
        adduser -D -s /bin/bash user
    fi
    chmod 0755 ~user
fi
passwd -d user >/dev/null 2>&1 || true
mkdir -p /etc/sudoers.d
echo 'user ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/user
chmod 0440 /etc/sudoers.d/user
mkdir -p /usr/local
find /usr/local ! -type l ! -perm -0777 -exec chmod a+rwX {} +
"#;

/// The last script of every build: writes the ids (`TEMPLATE_ID`, `BUILD_ID`) and the `PATH` of login shells (`TEMPLATE_PATH`), updates
/// certificates, and checks the packages.
pub const FINALIZE: &str = r#"
set -euo pipefail
printf 'ENV_ID=%s\nTEMPLATE_ID=%s\nBUILD_ID=%s\n' "$TEMPLATE_ID" "$TEMPLATE_ID" "$BUILD_ID" > /.e2b
profile=/etc/profile.d/zz-template-path.sh
if [[ -n $TEMPLATE_PATH && -d /etc/profile.d ]]; then
    printf 'PATH=%q\nexport PATH\n' "$TEMPLATE_PATH" > "$profile"
else
    rm -f "$profile"
fi
if command -v dpkg >/dev/null && [[ -n $(dpkg --audit 2>/dev/null) ]]; then
    echo 'packages are half-configured:' >&2
    dpkg --audit >&2
    exit 1
fi
if command -v update-ca-certificates >/dev/null && compgen -G '/usr/local/share/ca-certificates/*.crt' >/dev/null; then
    update-ca-certificates >/dev/null 2>&1 || echo 'the certificates in /usr/local/share/ca-certificates could not be added' >&2
fi
home=$(eval echo ~user)
[[ -z $home || ! -d $home ]] || find "$home" -maxdepth 0 ! -user user -exec chown user: {} +
"#;
