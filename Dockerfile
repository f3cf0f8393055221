# pgherald's image: the daemon and the other commands, without a compiler, a package manager's cache, or root.
# How to run it is in README.md. The volume holds the spool: what FCM accepted and the database does not know yet. One
# container has it at a time.
FROM python:3.13-slim AS build
WORKDIR /src
RUN python -m venv --without-pip /opt/pgherald
COPY requirements-demo.lock .
# With what `pgherald demo` and `pgherald fcm-emulator` need: `docker run --rm -t pgherald demo` shows it all.
RUN pip --python /opt/pgherald/bin/python install --no-cache-dir --require-hashes -r requirements-demo.lock
COPY pyproject.toml README.md ./
COPY sql sql
COPY daemon daemon
COPY systemd systemd
# Not editable: the wheel carries the SQL as files of its own.
RUN pip --python /opt/pgherald/bin/python install --no-cache-dir --no-deps --no-build-isolation . \
 && /opt/pgherald/bin/pgherald --help >/dev/null
# What is in it: docker run --rm --entrypoint cat pgherald /opt/pgherald/sbom.cdx.json
RUN /opt/pgherald/bin/python systemd/sbom.py >/opt/pgherald/sbom.cdx.json

FROM python:3.13-slim
LABEL org.opencontainers.image.title=pgherald \
      org.opencontainers.image.description="Pushes what Postgres finds due through Firebase Cloud Messaging" \
      org.opencontainers.image.sbom=/opt/pgherald/sbom.cdx.json
RUN useradd --system --uid 10477 --home-dir /var/lib/pgherald --shell /usr/sbin/nologin pgherald \
 && install --directory --owner=pgherald --group=pgherald --mode=0700 /var/lib/pgherald
COPY --from=build /opt/pgherald /opt/pgherald
ENV PATH=/opt/pgherald/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PGHERALD_STATE_DIR=/var/lib/pgherald \
    PGHERALD_METRICS_LISTEN=0.0.0.0:9477
USER pgherald
WORKDIR /var/lib/pgherald
VOLUME /var/lib/pgherald
EXPOSE 9477
# /healthz answers 200 while the daemon's loops turn; the database may be away for long without that being its fault.
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 CMD ["python", "-m", "pgherald.probe"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["pgherald"]
CMD ["run"]
