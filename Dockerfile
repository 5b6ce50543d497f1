# One component of Terway Mesh, static and from scratch; for people who have an engine. Without one: `cargo xtask image`.
#
#   docker build --build-arg COMPONENT=node-agent --tag terway-mesh/node-agent:0.0.0 .
#
# COMPONENT: cloud-gateway, ipam-service, node-agent, policy-agent, controlplane, terwayctl or cni.
ARG COMPONENT
ARG RUST=1.95

FROM rust:${RUST}-bookworm AS build
ARG COMPONENT
RUN apt-get update \
    && apt-get install --yes --no-install-recommends protobuf-compiler ca-certificates make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
# Each component is built by itself, so that none has features that only another one needs.
RUN set -eu; \
    target="$(rustc -vV | sed -n 's/^host: //p')"; \
    case "$COMPONENT" in \
        cni) binary=terway profile=cni ;; \
        *) binary="$COMPONENT" profile=release ;; \
    esac; \
    RUSTFLAGS='-C target-feature=+crt-static' \
        cargo build --locked --target "$target" --profile "$profile" -p "$COMPONENT" --bin "$binary"; \
    install -D -m 0755 "target/$target/$profile/$binary" "/out/$binary"; \
    strip --strip-debug "/out/$binary"; \
    if [ "$COMPONENT" != cni ]; then \
        install -D -m 0644 /etc/ssl/certs/ca-certificates.crt /out/etc/ssl/certs/ca-certificates.crt; \
        printf 'root:x:0:0:root:/:/sbin/nologin\nnobody:x:65534:65534:nobody:/:/sbin/nologin\nterway:x:65532:65532:terway:/:/sbin/nologin\n' > /out/etc/passwd; \
        printf 'root:x:0:\nnogroup:x:65534:\nterway:x:65532:\n' > /out/etc/group; \
        printf 'passwd: files\ngroup: files\nhosts: files dns\n' > /out/etc/nsswitch.conf; \
    fi

FROM scratch AS image
COPY --from=build /out/ /
WORKDIR /

FROM image AS cloud-gateway
ENTRYPOINT ["/cloud-gateway"]

FROM image AS ipam-service
ENTRYPOINT ["/ipam-service"]

FROM image AS node-agent
ENTRYPOINT ["/node-agent"]

FROM image AS policy-agent
ENTRYPOINT ["/policy-agent"]

FROM image AS controlplane
ENTRYPOINT ["/controlplane"]

FROM image AS terwayctl
ENTRYPOINT ["/terwayctl"]

FROM image AS cni
ENTRYPOINT ["/terway"]

FROM ${COMPONENT}
