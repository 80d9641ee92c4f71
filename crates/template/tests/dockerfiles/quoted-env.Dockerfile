FROM debian:12
ENV ONE="a b" TWO=c\ d THREE='e "f" g' FOUR="h \"i\" \$j"
ENV FIVE=${ONE:-none} SIX=${MISSING:+set}
ENV SEVEN all of this is one value
