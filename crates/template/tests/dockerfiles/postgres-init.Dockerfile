FROM postgres:17
ENV POSTGRES_DB=app POSTGRES_USER=app
COPY <<-"SQL" /docker-entrypoint-initdb.d/10-schema.sql
	CREATE TABLE item (id bigserial PRIMARY KEY, name text NOT NULL DEFAULT '$none');
	SQL
COPY *.sql.gz /docker-entrypoint-initdb.d/
