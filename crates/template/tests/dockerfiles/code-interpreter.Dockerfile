FROM e2bdev/code-interpreter:latest
RUN pip install cowsay
COPY --chown=user:user data /home/user/data
