"""The gRPC API as the official stubs see it: answers, status codes and texts of TF Serving."""

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf import wrappers_pb2
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from tests.assets import serving_messages
from tests.serve import servers
from tfzoo.serve import messages

INVALID, PRECONDITION = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION
NOT_FOUND = grpc.StatusCode.NOT_FOUND


def spec(name: str = "half_plus_two", signature: str = "", **choice) -> model_pb2.ModelSpec:
    if "version" in choice:
        choice["version"] = wrappers_pb2.Int64Value(value=choice["version"])
    return model_pb2.ModelSpec(name=name, signature_name=signature, **choice)


def predict_request(model_spec=None, outputs=(), **inputs) -> predict_pb2.PredictRequest:
    request = predict_pb2.PredictRequest(model_spec=model_spec or spec(), output_filter=outputs)
    for name, value in inputs.items():
        is_proto = isinstance(value, tensor_pb2.TensorProto)
        request.inputs[name].CopyFrom(value if is_proto else tf.make_tensor_proto(value))
    return request


def examples(*values: float, field: str = "x") -> list[tf.train.Example]:
    feature = [tf.train.Feature(float_list=tf.train.FloatList(value=[value])) for value in values]
    return [tf.train.Example(features=tf.train.Features(feature={field: each})) for each in feature]


class GrpcCase(tf.test.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        super().setUpClass()
        channel = cls.enterClassContext(grpc.insecure_channel(servers.grpc_address()))
        cls.channel = channel
        cls.predictions = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        cls.models = model_service_pb2_grpc.ModelServiceStub(channel)

    def assert_status(self, code: grpc.StatusCode, text: str, method, request) -> None:
        """Checks that a request fails with this code and exactly this text."""
        with self.assertRaises(grpc.RpcError) as raised:
            method(request, timeout=60)
        self.assertEqual((raised.exception.code(), raised.exception.details()), (code, text))

    def predict(self, model_spec=None, outputs=(), **inputs) -> dict[str, np.ndarray]:
        response = self.predictions.Predict(predict_request(model_spec, outputs, **inputs), timeout=60)
        return {name: tf.make_ndarray(proto) for name, proto in response.outputs.items()}


class PredictTest(GrpcCase):
    def test_it_answers_with_the_resolved_signature_and_version(self) -> None:
        response = self.predictions.Predict(predict_request(x=[1.0, 2.0, 5.0]), timeout=60)
        self.assertEqual(list(response.outputs["y"].float_val), [2.5, 3.0, 4.5])
        self.assertFalse(response.outputs["y"].tensor_content)
        self.assertEqual(response.model_spec, spec(signature="serving_default", version=1))
        self.assertAllEqual(self.predict(spec("old_style"), x=[[2.0]])["y"], [[3.0]])

    def test_versions_and_labels(self) -> None:
        for choice, bias in (
            ({}, 5),
            ({"version": 3}, 3),
            ({"version_label": "stable"}, 3),
            ({"version_label": "canary"}, 5),
        ):
            self.assertAllEqual(self.predict(spec("half_plus_three", **choice), x=[0.0])["y"], [bias])

    def test_strings_scalars_and_several_inputs(self) -> None:
        values = self.predict(spec(signature="upper"), text=["a", "bé\0"])
        self.assertEqual(values["upper"].tolist(), [b"A", "Bé\0".encode()])
        self.assertAllEqual(values["length_bytes"], [1, 4])
        self.assertEqual((values["count"].shape, int(values["count"])), ((), 2))
        values = self.predict(spec(signature="several"), ids=np.array([[1, 2, 3]], np.int64), scale=np.float64(0.5))
        self.assertAllEqual(values["sum"], [3.0])

    def test_an_empty_batch(self) -> None:
        self.assertEqual(self.predict(x=np.zeros(0, np.float32))["y"].shape, (0,))

    def test_output_filter(self) -> None:
        self.assertEqual(set(self.predict(spec(signature="upper"), ["count"], text=["a"])), {"count"})
        self.assert_status(
            INVALID,
            "output tensor alias not found in signature: z Outputs expected to be in the set {y}.",
            self.predictions.Predict,
            predict_request(outputs=["z"], x=[1.0]),
        )
        self.assert_status(
            INVALID,
            "duplicate output tensor alias: y",
            self.predictions.Predict,
            predict_request(outputs=["y", "y"], x=[1.0]),
        )

    def test_models_versions_labels_and_signatures_that_do_not_exist(self) -> None:
        for model_spec, code, text in (
            (spec("nobody"), NOT_FOUND, "Servable not found for request: Latest(nobody)"),
            (spec(version=9), NOT_FOUND, "Servable not found for request: Specific(half_plus_two, 9)"),
            (spec("nobody", version=1), NOT_FOUND, "Servable not found for request: Specific(nobody, 1)"),
            (spec(version_label="x"), INVALID, "Unrecognized servable version label: x"),
            (spec(""), INVALID, "ModelSpec has no name specified."),
            (spec(signature="x"), PRECONDITION, 'Serving signature key "x" not found.'),
        ):
            self.assert_status(code, text, self.predictions.Predict, predict_request(model_spec, x=[1.0]))
        request = predict_request(x=[1.0])
        request.ClearField("model_spec")
        self.assert_status(INVALID, "Missing ModelSpec", self.predictions.Predict, request)

    def test_names_of_inputs(self) -> None:
        several = spec(signature="several")
        self.assert_status(
            INVALID,
            "input size does not match signature: 2!=1 len({x,z}) != len({x}). Sent extra: {z}. Missing but required: "
            "{}.",
            self.predictions.Predict,
            predict_request(x=[1.0], z=[1.0]),
        )
        self.assert_status(
            INVALID,
            "input size does not match signature: 1!=2 len({ids}) != len({ids,scale}). Sent extra: {}. Missing but "
            "required: {scale}.",
            self.predictions.Predict,
            predict_request(several, ids=[[1, 2, 3]]),
        )
        with self.assertRaises(grpc.RpcError) as raised:
            self.predict(z=[1.0])
        self.assertEqual(raised.exception.code(), INVALID)
        self.assertRegex(
            raised.exception.details(),
            r"^Signature input alias: x\(feed name: \w+:0\) not found in request and no default value provided. Inputs "
            r"expected to be in the request \{z\}, or default input alias set: $",
        )

    def test_damaged_tensors(self) -> None:
        negative = tensor_pb2.TensorProto(dtype=1, float_val=[1])
        negative.tensor_shape.dim.add(size=-1)
        short = tensor_pb2.TensorProto(dtype=1, tensor_content=b"123")
        short.tensor_shape.dim.add(size=1)
        for proto in (negative, short, tensor_pb2.TensorProto()):
            self.assert_status(INVALID, "tensor parsing error: x", self.predictions.Predict, predict_request(x=proto))

    def test_wrong_types_and_shapes_are_the_clients_error(self) -> None:
        for inputs in ({"x": [1]}, {"x": ["a"]}, {"x": [[1.0]]}, {"x": 1.0}):
            with self.assertRaises(grpc.RpcError) as raised:
                self.predict(**inputs)
            self.assertEqual(raised.exception.code(), INVALID, inputs)

    def test_what_is_not_a_message_is_the_clients_error(self) -> None:
        send = self.channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        with self.assertRaises(grpc.RpcError) as raised:
            send(b"\xff\xff\xff", timeout=60)
        self.assertIn(raised.exception.code(), (INVALID, grpc.StatusCode.INTERNAL))  # INTERNAL is TF Serving's.
        with self.assertRaises(grpc.RpcError) as raised:
            self.channel.unary_unary("/tensorflow.serving.PredictionService/Train")(b"", timeout=60)
        self.assertEqual(raised.exception.code(), grpc.StatusCode.UNIMPLEMENTED)

    def test_a_deadline_in_the_past(self) -> None:
        with self.assertRaises(grpc.RpcError) as raised:
            self.predictions.Predict(predict_request(x=[1.0]), timeout=0)
        self.assertEqual(raised.exception.code(), grpc.StatusCode.DEADLINE_EXCEEDED)


class ExamplesTest(GrpcCase):
    def test_classify(self) -> None:
        request = classification_pb2.ClassificationRequest(model_spec=spec(signature="classify"))
        request.input.example_list.examples.extend(examples(1.0, 2.0))
        response = self.predictions.Classify(request, timeout=60)
        rows = [[(each.label, each.score) for each in row.classes] for row in response.result.classifications]
        self.assertEqual(rows, [[("2.500000", 2.5), ("other", -1.5)], [("3.000000", 3.0), ("other", -2.0)]])
        self.assertEqual(response.model_spec, spec(signature="classify", version=1))
        request.model_spec.CopyFrom(spec("old_style", "classify"))  # It has scores alone.
        response = self.predictions.Classify(request, timeout=60)
        self.assertEqual([row.classes[0].score for row in response.result.classifications], [2.5, 3.0])
        self.assertEqual(response.result.classifications[0].classes[0].label, "")

    def test_regress_with_a_context(self) -> None:
        request = regression_pb2.RegressionRequest(model_spec=spec(signature="regress"))
        with_context = request.input.example_list_with_context
        with_context.examples.extend([*examples(4.0), tf.train.Example()])
        with_context.context.CopyFrom(examples(8.0)[0])
        response = self.predictions.Regress(request, timeout=60)
        # The value of an example precedes that of the context.
        self.assertEqual([each.value for each in response.result.regressions], [4.0, 6.0])
        self.assertEqual(response.model_spec, spec(signature="regress", version=1))

    def test_multi_inference(self) -> None:
        request = inference_pb2.MultiInferenceRequest()
        for name in ("classify", "regress"):
            request.tasks.add(model_spec=spec("old_style", name), method_name=f"tensorflow/serving/{name}")
        request.input.example_list.examples.extend(examples(2.0))
        response = self.predictions.MultiInference(request, timeout=60)
        self.assertEqual(response.results[0].classification_result.classifications[0].classes[0].score, 3.0)
        self.assertEqual(response.results[1].regression_result.regressions[0].value, 3.0)
        self.assertEqual(response.results[1].model_spec, spec("old_style", "regress", version=123))
        for change, code, text in (
            (
                lambda tasks: tasks[1].model_spec.ClearField("name"),
                INVALID,
                "Found ModelSpec with an empty model name.",
            ),
            (
                lambda tasks: tasks[1].model_spec.CopyFrom(spec("half_plus_two")),
                INVALID,
                "All ModelSpecs in a MultiInferenceRequest must access the same model name.",
            ),
            (lambda tasks: tasks[1].CopyFrom(tasks[0]), INVALID, "Duplicate evaluation of signature: classify"),
            (
                lambda tasks: tasks[1].model_spec.CopyFrom(spec("old_style", "x")),
                INVALID,
                "Requested signature not found in model graph: x",
            ),
            (
                lambda tasks: setattr(tasks[1], "method_name", "x"),
                grpc.StatusCode.UNIMPLEMENTED,
                "Unsupported signature method_name: x",
            ),
        ):
            changed = inference_pb2.MultiInferenceRequest.FromString(request.SerializeToString())
            change(changed.tasks)
            self.assert_status(code, text, self.predictions.MultiInference, changed)
        empty = inference_pb2.MultiInferenceRequest()
        self.assert_status(INVALID, "ModelSpec has no name specified.", self.predictions.MultiInference, empty)

    def test_errors(self) -> None:
        classify, regress = classification_pb2.ClassificationRequest, regression_pb2.RegressionRequest
        for method, request, text in (
            (
                self.predictions.Classify,
                classify(model_spec=spec(signature="x")),
                "No signature was found with the name: x",
            ),
            (
                self.predictions.Regress,
                regress(model_spec=spec(signature="x")),
                "No signature was found with the name: x",
            ),
            (self.predictions.Classify, classify(), "Missing ModelSpec"),
            (self.predictions.Regress, regress(), "Missing ModelSpec"),
            (self.predictions.Classify, classify(model_spec=spec(signature="classify")), "Input is empty."),
            (self.predictions.Classify, classify(model_spec=spec(signature="several")), "Expected one input Tensor."),
            (self.predictions.Regress, regress(model_spec=spec(signature="classify")), "Expected one output Tensor."),
            (
                self.predictions.Regress,
                regress(model_spec=spec()),
                "No regression inputs found in SignatureDef: ",
            ),
            (
                self.predictions.Classify,
                classify(model_spec=spec()),
                "No classification inputs found in SignatureDef: ",
            ),
            (
                self.predictions.Classify,
                classify(model_spec=spec(signature="regress")),
                'Expected classification signature outputs to contain at least one of "classes" or "scores". ',
            ),
        ):
            with self.assertRaises(grpc.RpcError) as raised:
                method(request, timeout=60)
            self.assertEqual(raised.exception.code(), INVALID)
            self.assertStartsWith(raised.exception.details(), text)


class ModelsTest(GrpcCase):
    def test_metadata(self) -> None:
        request = get_model_metadata_pb2.GetModelMetadataRequest(model_spec=spec(), metadata_field=["signature_def"])
        response = self.predictions.GetModelMetadata(request, timeout=60)
        self.assertEqual(response.model_spec, spec(version=1))
        signatures = get_model_metadata_pb2.SignatureDefMap()
        self.assertTrue(response.metadata["signature_def"].Unpack(signatures))
        default = signatures.signature_def["serving_default"]
        self.assertEqual(default.method_name, "tensorflow/serving/predict")
        self.assertEqual(default.inputs["x"].dtype, 1)
        for fields, text in (
            ([], "GetModelMetadataRequest must specify at least one metadata_field"),
            (["graph"], "Metadata field graph is not supported"),
        ):
            bad = get_model_metadata_pb2.GetModelMetadataRequest(model_spec=spec(), metadata_field=fields)
            self.assert_status(INVALID, text, self.predictions.GetModelMetadata, bad)
        self.assert_status(
            INVALID,
            "Missing ModelSpec",
            self.predictions.GetModelMetadata,
            get_model_metadata_pb2.GetModelMetadataRequest(),
        )
        request.model_spec.name = "nobody"
        text = "Servable not found for request: Latest(nobody)"
        self.assert_status(NOT_FOUND, text, self.predictions.GetModelMetadata, request)

    def test_status(self) -> None:
        def status(**choice):
            return get_model_status_pb2.GetModelStatusRequest(model_spec=spec(**choice))

        available = get_model_status_pb2.ModelVersionStatus.AVAILABLE
        response = self.models.GetModelStatus(status(name="half_plus_three"), timeout=60)
        states = [(each.version, each.state, each.status.error_code) for each in response.model_version_status]
        self.assertEqual(states, [(5, available, 0), (3, available, 0)])
        response = self.models.GetModelStatus(status(name="half_plus_three", version=3), timeout=60)
        self.assertEqual([each.version for each in response.model_version_status], [3])
        self.assert_status(
            NOT_FOUND, "Could not find any versions of model nobody", self.models.GetModelStatus, status(name="nobody")
        )
        self.assert_status(
            NOT_FOUND, "Could not find version 9 of model half_plus_two", self.models.GetModelStatus, status(version=9)
        )
        missing = get_model_status_pb2.GetModelStatusRequest()
        self.assert_status(INVALID, "Missing ModelSpec", self.models.GetModelStatus, missing)

    def test_configurations_that_are_refused_change_nothing(self) -> None:
        def config(*models):
            request = model_management_pb2.ReloadConfigRequest()
            for name, path, platform in models:
                request.config.model_config_list.config.add(name=name, base_path=path, model_platform=platform)
            return request

        two = ("half_plus_two", "/nowhere", "tensorflow")
        for request, text in (
            (config(two, two), "Illegal to list model half_plus_two multiple times in config list"),
            (
                config(("m", "relative", "tensorflow")),
                "Expected model m to have an absolute path or URI; got base_path()=relative",
            ),
            (
                model_management_pb2.ReloadConfigRequest(),
                (
                    "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is "
                    "currently supported"
                ),
            ),
        ):
            self.assert_status(INVALID, text, self.models.HandleReloadConfigRequest, request)
        self.assertAllEqual(self.predict(x=[1.0])["y"], [2.5])


class DescriptorsTest(tf.test.TestCase):
    def test_messages_are_those_of_the_installed_package(self) -> None:
        stored = {message.name for message in serving_messages.descriptors().file}
        self.assertEqual(
            serving_messages.PATH.read_bytes(), serving_messages.descriptors().SerializeToString(deterministic=True)
        )
        self.assertIn("tensorflow_serving/apis/predict.proto", stored)
        self.assertEqual(messages.TensorProto.DESCRIPTOR.full_name, "tensorflow.TensorProto")


if __name__ == "__main__":
    tf.test.main()
