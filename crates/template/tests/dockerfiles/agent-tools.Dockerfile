FROM e2bdev/base
RUN --mount=type=cache,target=/var/cache/apt,sharing=locked \
    --mount=type=cache,target=/var/lib/apt,sharing=locked \
    apt-get update && apt-get install -y tmux
RUN <<EOF python3
import json, pathlib
pathlib.Path("/etc/tools.json").write_text(json.dumps({"tools": ["tmux"]}))
EOF
