# The server as an image, for CPU (default) or NVIDIA GPU:
#
#   docker build -t ortus .
#   docker build -t ortus:cuda --target cuda .
#   docker run --rm --name ortus -p 127.0.0.1:8080:8080 -p 127.0.0.1:8081:8081 -v ortus-models:/models ortus
#   docker run --rm --gpus all -p 127.0.0.1:8080:8080 ortus:cuda
#   docker exec ortus ortus key create --role admin        # from then on every caller needs a key; see deploy/README.md
#
# The root file system may be read-only (--read-only --tmpfs /tmp): the server writes to the volume
# /models alone, which starts with the models of this repository. Mount a folder of your own there,
# writable by uid 10001, to serve other models.

FROM rust:1.95-slim-bookworm AS build
WORKDIR /src
COPY . .
# The caches stay out of the layer, so the binary is copied from them in the same step.
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked --bin ortus \
    && cp target/release/ortus /usr/local/bin/ortus

# ONNX Runtime comes from its Python wheel; Python itself stays in this stage.
FROM python:3.12-slim-bookworm AS library-cpu
COPY tools/install_onnxruntime.py /tools/
RUN python3 /tools/install_onnxruntime.py --dir /lib-onnxruntime

FROM python:3.12-slim-bookworm AS library-cuda
COPY tools/install_onnxruntime.py /tools/
RUN python3 /tools/install_onnxruntime.py --cuda --dir /lib-onnxruntime \
    # One folder for the loader path, wherever each wheel puts its libraries.
    && mkdir /lib-onnxruntime/cuda \
    && find /lib-onnxruntime/python/nvidia -name '*.so*' -exec mv -t /lib-onnxruntime/cuda {} + \
    # Of cuDNN; the last stage has glibc and libstdc++ only.
    && cp -L /lib/*-linux-gnu/libz.so.1 /lib-onnxruntime/cuda/ \
    && rm -rf /lib-onnxruntime/python /lib-onnxruntime/env.sh

# No shell, no package manager: glibc, libstdc++, which ONNX Runtime links, and the certificates for downloads from model hubs.
FROM gcr.io/distroless/cc-debian12 AS runtime
COPY --from=build /usr/local/bin/ortus /usr/local/bin/ortus
COPY --chown=10001:10001 models /models
# For every command, such as `docker exec … ortus key create --role admin`; what `ortus pull` adds so is found and served.
ENV PATH=/usr/local/bin \
    ORT_DYLIB_PATH=/opt/onnxruntime/libonnxruntime.so.1 \
    ORTUS_STORE__MODELS_DIR=/models \
    ORTUS_STORE__POLL_INTERVAL_MS=5000
USER 10001:10001
WORKDIR /models
VOLUME ["/models"]
EXPOSE 8080 8081
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 CMD ["/usr/local/bin/ortus", "health"]
# Inside the container every address is public; who may reach it is decided by the port that is published. --insecure: so
# it starts without a key, too, and answers whoever reaches it; where there is a key, it is asked for all the same.
ENTRYPOINT ["/usr/local/bin/ortus"]
CMD ["serve", "--listen", "0.0.0.0:8080", "--grpc", "0.0.0.0:8081", "--insecure"]

FROM runtime AS cuda
COPY --from=library-cuda /lib-onnxruntime /opt/onnxruntime
ENV LD_LIBRARY_PATH=/opt/onnxruntime:/opt/onnxruntime/cuda \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# Last, so that a build without --target makes it.
FROM runtime AS cpu
COPY --from=library-cpu /lib-onnxruntime /opt/onnxruntime
