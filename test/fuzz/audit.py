"""Checks what fuzzing must never break, whatever it sent: the books sum to zero, and every account is what its events say.

Usage: audit.py BASE_URL
"""

import json
import sys
import time
import urllib.request

BASE = sys.argv[1]
RUNS_MAX = 20  # of 30 seconds each


def ask(method, path):
    request = urllib.request.Request(BASE + path, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def main():
    began = time.monotonic()
    check = ask("POST", "/api/v1/books/reconcile?wait=30s")  # it may be one that the fuzzer began
    while check["status"] == "running" and RUNS_MAX * 30 > time.monotonic() - began:
        check = ask("POST", "/api/v1/books/reconcile?wait=30s")
    check = ask("POST", "/api/v1/books/reconcile?wait=30s")
    if check["status"] != "clean":
        sys.exit(f"the reconciliation is not clean: {json.dumps(check)[:2000]}")
    for books in ask("GET", "/api/v1/books")["currencies"]:
        if books["difference"].strip("0.") != "":
            sys.exit(f"the books do not sum to zero: {books}")
    print(f"· books sum to zero; {check['accounts']} accounts and {check['events']} events reconcile")


main()
