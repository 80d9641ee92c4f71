	# indented comment
FROM debian:12
  RUN	apt-get update \
	&& apt-get install -y \
	# an editor
	vim	\
	less
	WORKDIR	/data
