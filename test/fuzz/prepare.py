"""Opens accounts and moves money over the REST API, so that the fuzzer has something to name; prints the ids as JSON.

Usage: prepare.py BASE_URL [PATHS_TO_LEAVE_OUT]
"""

import json
import re
import sys
import urllib.request
import uuid

BASE = sys.argv[1]
LEFT_OUT = sys.argv[2] if len(sys.argv) > 2 else ""
RUN = uuid.uuid4().hex[:8]


def post(path, **body):
    """The answer to a POST; None where the path is left out."""
    if LEFT_OUT and re.search(LEFT_OUT, path):
        return None
    if path != "/api/v1/accounts":
        path += "?wait=30s"
        body.setdefault("idempotencyKey", f"fuzz-{RUN}-{uuid.uuid4().hex}")
    request = urllib.request.Request(BASE + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as e:
        sys.exit(f"POST {path} {json.dumps(body)}: {e.code} {e.read().decode()}")


def account(owner, kind):
    return post("/api/v1/accounts", ownerId=owner, ownerType="person", accountType=kind, currency="USD")["accountId"]


def move(path, source, destination, amount):
    return post(path, sourceAccountId=source, destinationAccountId=destination, amount=amount, currency="USD")


def main():
    bank, shop, alice, bob = account("bank", "EXTERNAL"), account("shop", "SYSTEM"), account("alice", "USER"), account("bob", "USER")
    spare = [account("carol", "USER") for _ in range(5)]  # to suspend and close
    transactions = [
        move("/api/v1/transactions/topup", bank, alice, "1000000.00"),
        move("/api/v1/transactions/topup", bank, bob, "1000.00"),
        move("/api/v1/transactions/transfer", alice, bob, "50.00"),
        move("/api/v1/transactions/transfer", spare[0], bob, "50.00"),  # fails
        move("/api/v1/transactions/withdraw", bob, bank, "30.00"),
    ]
    payments = [
        post("/api/v1/transactions/payment", customerAccountId=alice, merchantAccountId=shop, amount=amount, currency="USD")
        for amount in ["500.00"] * 10]
    holds = [
        post("/api/v1/holds", accountId=alice, destinationAccountId=destination, amount="500.00", currency="USD")
        for destination in [shop, bob] * 5]
    for payment in payments[:1]:
        if payment:
            transactions.append(post("/api/v1/transactions/refund", paymentId=payment["transactionId"], amount="1.00"))
    for hold in holds[:1]:
        if hold:
            transactions.append(post(f"/api/v1/holds/{hold['holdId']}/capture", amount="1.00"))
    ids = [t["transactionId"] for t in transactions + payments if t]
    payment_ids, hold_ids = [p["transactionId"] for p in payments if p], [h["holdId"] for h in holds if h]
    known = {
        "accountId": [alice, bob, shop, bank, spare[0]], "sourceAccountId": [alice, bob, bank], "destinationAccountId": [bob, alice, bank, shop],
        "customerAccountId": [alice, bob], "merchantAccountId": [shop, bob],
        "transactionId": ids, "sagaId": ids, "paymentId": payment_ids, "holdId": hold_ids,
        "currency": ["USD"], "amount": ["0.01", "1.00", "2.5"],
    }
    bodies = {  # what goes together
        "/api/v1/transactions/topup": {"sourceAccountId": [bank], "destinationAccountId": [alice, bob]},
        "/api/v1/transactions/withdraw": {"sourceAccountId": [alice, bob], "destinationAccountId": [bank]},
        "/api/v1/transactions/transfer": {"sourceAccountId": [alice], "destinationAccountId": [bob, shop]},
        "/api/v1/holds": {"accountId": [alice], "destinationAccountId": [shop]},
        "/api/v1/holds/{holdId}/capture": {"destinationAccountId": [shop, bob]},
    }
    json.dump({"known": {name: values for name, values in known.items() if values}, "bodies": bodies, "spare": spare}, sys.stdout)


main()
