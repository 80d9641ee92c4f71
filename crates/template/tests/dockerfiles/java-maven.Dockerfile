FROM maven:3.9-eclipse-temurin-21 AS build
WORKDIR /home/app
COPY pom.xml .
RUN mvn -B dependency:go-offline
COPY src src
RUN mvn -B package -DskipTests
FROM eclipse-temurin:21-jre
ENV JAVA_OPTS="-XX:MaxRAMPercentage=75 -Xss512k"
COPY --from=build /home/app/target/*.jar /app.jar
ENTRYPOINT exec java $JAVA_OPTS -jar /app.jar
