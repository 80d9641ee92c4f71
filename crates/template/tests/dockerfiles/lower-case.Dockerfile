from debian:12
arg greeting=hello
run echo $greeting > /greeting
cmd cat /greeting
