"""The proxy: accepts agents, and visitors who reach them."""

from __future__ import annotations

from tunnelmux.proxy.app import DrainReport, ReloadReport, RunningProxy, run_proxy

__all__ = ["DrainReport", "ReloadReport", "RunningProxy", "run_proxy"]
