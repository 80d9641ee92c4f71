FROM nvidia/cuda:12.6.0-runtime-ubuntu24.04
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
ENV NVIDIA_VISIBLE_DEVICES=all
RUN curl -fsSL https://example.com/install.sh | bash -s -- --prefix=/opt
RUN pip install --index-url https://download.pytorch.org/whl/cu126 torch
