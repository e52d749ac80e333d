"""Uses a server as any program with boto3 would: credentials and endpoint come from the environment.

Every answer is checked against botocore's service model before botocore reads it, because botocore itself passes over
members that it does not know. Prints one line for each step.
"""

import base64
import io
import json
import zipfile
from datetime import datetime

import boto3
from botocore import xform_name
from botocore.config import Config
from botocore.exceptions import ClientError, WaiterError

ROLE = "arn:aws:iam::000000000000:role/any"
QUICK = {"Delay": 0.05, "MaxAttempts": 600}
ONCE = Config(retries={"total_max_attempts": 1})
KINDS = {"string": str, "integer": int, "long": int, "boolean": bool, "timestamp": str}
answers = set()


def check(shape, value, place):
    """A value is as the model says: known members, their types, known values of enumerations."""
    if shape.type_name == "structure":
        wire = {s.serialization.get("name", n): s for n, s in shape.members.items() if "location" not in s.serialization}
        for name, member in value.items():
            assert name in wire, f"{place}: the model has no member {name}"
            check(wire[name], member, f"{place}.{name}")
    elif shape.type_name == "list":
        for member in value:
            check(shape.member, member, f"{place}[]")
    elif shape.type_name == "map":
        for key, member in value.items():
            check(shape.key, key, f"{place} key")
            check(shape.value, member, f"{place}[{key}]")
    else:
        assert type(value) is KINDS[shape.type_name], f"{place}: {value!r} is no {shape.type_name}"
        assert not getattr(shape, "enum", None) or value in shape.enum, f"{place}: {value!r} is not in the model"


def check_answer(operation_model, response_dict, **_):
    status, headers, body = response_dict["status_code"], response_dict["headers"], response_dict["body"]
    name = operation_model.name
    assert headers["x-amzn-RequestId"], name
    if status >= 300:
        code = headers["x-amzn-ErrorType"]
        shapes = {shape.name: shape for shape in operation_model.error_shapes}
        if code in shapes:
            check(shapes[code], json.loads(body), code)
            assert status == shapes[code].metadata["error"]["httpStatusCode"], (code, status)
        answers.add(f"{name} {status} {code}")
        return
    answers.add(f"{name} {status}")
    output = operation_model.output_shape
    if name == "Invoke":
        assert status in (200, 202, 204)
    else:
        assert status == operation_model.http["responseCode"], (name, status)
        if output is not None:
            check(output, json.loads(body), name)


def bundle(source):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("app.py", source)
    return data.getvalue()


def refused(error, call, **arguments):
    try:
        call(**arguments)
    except error as refusal:
        said = refusal.response["Error"]
        assert said["Message"], said
        print(f"{call.__name__} refused: {said['Code']}")
    else:
        raise AssertionError(f"{call.__name__} was not refused")


def new(name, handler):
    code = {"ZipFile": bundle("pass\n")}
    return {"FunctionName": name, "Runtime": "python3.11", "Role": ROLE, "Handler": handler, "Code": code}


def create(client, name, handler, **more):
    return client.create_function(**new(name, handler), **more)


def deploying(client):
    created = create(client, "echo", "app.echo", Environment={"Variables": {"COLOUR": "blue"}}, Tags={"team": "sound"})
    client.get_waiter("function_exists").wait(FunctionName="echo", WaiterConfig=QUICK)
    client.get_waiter("function_active_v2").wait(FunctionName="echo", WaiterConfig=QUICK)
    got = client.get_function(FunctionName="echo")
    datetime.strptime(got["Configuration"]["LastModified"], "%Y-%m-%dT%H:%M:%S.%f%z")
    print("created", created["State"], "then", got["Configuration"]["State"], got["Tags"])

    updated = client.update_function_code(FunctionName="echo", ZipFile=bundle("new = 1\n"))
    client.get_waiter("function_updated_v2").wait(FunctionName="echo", WaiterConfig=QUICK)
    print("code updated", updated["CodeSha256"] != created["CodeSha256"])
    client.update_function_configuration(
        FunctionName=created["FunctionArn"], Timeout=30, MemorySize=512, Description="a + b & c", RevisionId=revision(client)
    )
    client.get_waiter("function_updated").wait(FunctionName="echo", WaiterConfig=QUICK)
    now = client.get_function_configuration(FunctionName="echo", Qualifier="$LATEST")
    print("configuration", now["Timeout"], now["MemorySize"], now["Description"], now["Environment"]["Variables"])
    client.tag_resource(Resource=created["FunctionArn"], Tags={"a key/with": "=&?"})
    client.untag_resource(Resource=created["FunctionArn"], TagKeys=["team"])
    print("tags", client.list_tags(Resource=created["FunctionArn"])["Tags"])

    create(client, "broken", "app.echo", Environment={"Variables": {"FAIL_PREPARE": "1"}})
    try:
        client.get_waiter("function_active_v2").wait(FunctionName="broken", WaiterConfig=QUICK)
    except WaiterError as error:
        print("the waiter says:", error.last_response["Configuration"]["StateReason"])


def revision(client):
    return client.get_function_configuration(FunctionName="echo")["RevisionId"]


def invoking(client):
    event = {"text": "ß ✓", "list": [1, 2.5, None]}
    answer = client.invoke(FunctionName="echo", Payload=json.dumps(event), LogType="Tail")
    assert json.loads(answer["Payload"].read()) == event
    log = base64.b64decode(answer["LogResult"]).decode()
    print("invoked", answer["StatusCode"], answer["ExecutedVersion"], log.split()[0], "FunctionError" in answer)
    answer = client.invoke(FunctionName="echo", Payload=io.BytesIO(b"[1]"), Qualifier="$LATEST")
    print("from a file", answer["Payload"].read())
    print("event", client.invoke(FunctionName="echo", InvocationType="Event")["StatusCode"])
    print("dry run", client.invoke(FunctionName="echo", InvocationType="DryRun")["StatusCode"])
    for handler in ("error", "timeout", "large"):
        create(client, handler, f"app.{handler}")
        client.get_waiter("function_active_v2").wait(FunctionName=handler, WaiterConfig=QUICK)
        answer = client.invoke(FunctionName=handler)
        kind = json.loads(answer["Payload"].read())["errorType"]
        print(handler, answer["StatusCode"], answer["FunctionError"], kind)


def listing(client):
    pages = client.get_paginator("list_functions").paginate(PaginationConfig={"PageSize": 2})
    print("pages", [[function["FunctionName"] for function in page["Functions"]] for page in pages])


def refusals(client):
    errors = client.exceptions
    refused(errors.ResourceNotFoundException, client.get_function, FunctionName="nobody")
    refused(errors.ResourceNotFoundException, client.invoke, FunctionName="nobody")
    refused(errors.ResourceConflictException, client.create_function, **new("echo", "app.echo"))
    refused(errors.InvalidRequestContentException, client.invoke, FunctionName="echo", Payload=b"{")
    refused(errors.RequestTooLargeException, client.invoke, FunctionName="echo", Payload=b"1" * 6_291_457)
    refused(
        errors.PreconditionFailedException,
        client.update_function_configuration,
        FunctionName="echo",
        RevisionId="another",
        Timeout=1,
    )
    refused(errors.InvalidParameterValueException, client.update_function_configuration, FunctionName="echo", Timeout=901)
    for handler, error in (("reserved", errors.TooManyRequestsException), ("platform", errors.ServiceException)):
        create(client, handler, f"app.{handler}")
        client.get_waiter("function_active_v2").wait(FunctionName=handler, WaiterConfig=QUICK)
        refused(error, client.invoke, FunctionName=handler)
    other = {"aws_access_key_id": "SOMEBODYELSESKEY", "aws_secret_access_key": "a-secret-of-others"}
    stranger = boto3.client("lambda", config=ONCE, **other)
    refused(ClientError, stranger.list_functions)
    refused(ClientError, stranger.update_function_code, FunctionName="echo", ZipFile=b"x" * 8_000_000)


def sample(shape):
    """Some value of a shape, with all its members."""
    if shape.type_name == "structure":
        return {name: sample(member) for name, member in shape.members.items()}
    if shape.type_name == "list":
        return [sample(shape.member)]
    if shape.type_name == "map":
        return {sample(shape.key): sample(shape.value)}
    if shape.type_name == "string":
        return shape.enum[-1] if shape.enum else "x" * max(shape.metadata.get("min", 0), 1)
    return {"blob": b"x", "boolean": True}.get(shape.type_name, shape.metadata.get("min", 1))


def unsupported(client):
    """What the model has and the server has not is refused, never taken and ignored."""
    create = new("more", "app.echo")
    config = {"FunctionName": "echo"}
    known = {"Description", "Timeout", "MemorySize", "Environment", "TracingConfig", "EphemeralStorage", "SnapStart"}
    known |= {"Runtime", "Role", "Handler", "LoggingConfig"}
    code = {"FunctionName": "echo", "ZipFile": bundle("")}
    cases = (
        ("CreateFunction", create, known | {"PackageType", "Tags", "Architectures"}),
        ("UpdateFunctionConfiguration", config, known | {"RevisionId"}),
        ("UpdateFunctionCode", code, {"Architectures", "DryRun", "RevisionId"}),
        ("Invoke", config, {"InvocationType", "LogType", "ClientContext", "Payload", "Qualifier"}),
    )
    for operation, base, supported in cases:
        members = client.meta.service_model.operation_model(operation).input_shape.members
        more = {name: {name: sample(shape)} for name, shape in members.items() if name not in base.keys() | supported}
        if operation == "CreateFunction":
            ours = {"ZipFile": b"x"}
            parts = {name: shape for name, shape in members["Code"].members.items() if name != "ZipFile"}
            more |= {f"Code.{name}": {"Code": ours | {name: sample(shape)}} for name, shape in parts.items()}
        taken = []
        for name, arguments in sorted(more.items()):
            try:
                getattr(client, xform_name(operation))(**base | arguments)
                taken.append(name)
            except ClientError as refusal:
                message = refusal.response["Error"]["Message"]
                if "not supported by this server" not in message:
                    taken.append(f"{name} ({message})")
        print(f"{operation} refuses {len(more) - len(taken)} members that it does not have, and takes {taken}")


def main():
    client = boto3.client("lambda", config=ONCE)
    client.meta.events.register("before-parse.lambda", check_answer)
    deploying(client)
    invoking(client)
    listing(client)
    refusals(client)
    unsupported(client)
    client.delete_function(FunctionName="echo")
    refused(client.exceptions.ResourceNotFoundException, client.delete_function, FunctionName="echo")
    print(*sorted(answers), sep="\n")


main()
