FROM debian:12
RUN echo one && \
    echo two
ENV A=1
