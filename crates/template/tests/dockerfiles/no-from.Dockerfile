RUN echo nothing
