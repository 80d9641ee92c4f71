FROM python:3.12
RUN apt-get update && apt-get install -y --no-install-recommends \
        # plotting
        libfreetype6 \
        libpng16-16 \

        # linear algebra
        libopenblas0 \
    && rm -rf /var/lib/apt/lists/*
RUN pip install numpy pandas matplotlib scipy
