FROM python:3.11-slim-bookworm
WORKDIR /opt/holdfast
COPY requirements/runtime.txt requirements/runtime.txt
RUN pip install --no-cache-dir --require-hashes -r requirements/runtime.txt
COPY . .
RUN pip install --no-cache-dir --no-deps --no-build-isolation . && useradd --system holdfast
USER holdfast
ENTRYPOINT ["holdfast"]
