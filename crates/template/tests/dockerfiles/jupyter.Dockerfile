FROM quay.io/jupyter/minimal-notebook:2026-01-01
USER root
RUN <<EOF
set -e
apt-get update
apt-get install -y graphviz
apt-get clean
EOF
USER ${NB_UID}
RUN mamba install --yes 'flake8' && mamba clean --all -f -y
