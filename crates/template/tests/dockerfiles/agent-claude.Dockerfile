FROM node:24
RUN apt-get update && apt-get install -y --no-install-recommends git ripgrep jq curl sudo && rm -rf /var/lib/apt/lists/*
RUN npm install -g @anthropic-ai/claude-code@latest
RUN useradd -m -s /bin/bash agent && echo "agent ALL=(ALL) NOPASSWD:ALL" > /etc/sudoers.d/agent
USER agent
WORKDIR /home/agent
RUN git config --global user.name Agent && git config --global user.email agent@example.com
