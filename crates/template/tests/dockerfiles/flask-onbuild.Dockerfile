FROM tiangolo/uwsgi-nginx-flask:python3.11
ONBUILD COPY . /app
ONBUILD RUN pip install -r /app/requirements.txt
ENV STATIC_INDEX 1
