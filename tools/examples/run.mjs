// Runs a file of topkast.export in ONNX Runtime from Node.js, on topkast's kernels.
//
//     npm install onnxruntime-node koffi
//     node run.mjs model.onnx libtopkast.so x y 2 64
//
// where topkast.onnx.library_path() says where the library is, and x and y are the names of an input of float [2, 64]
// and of an output. The input is filled with 0, 0.01, 0.02, ...; each number of the output is printed on a line.
//
// The interface of onnxruntime-node has no call that registers a library (version 1.30 does not). With "-" instead of
// the library this program uses that interface: any file of topkast.export runs, and products of the format "custom"
// run at dense speed. With a library the program calls the C interface of the ONNX Runtime inside onnxruntime-node; the
// package koffi makes C functions callable.
import { readdirSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";

const [model, library, input, output, rows, columns] = process.argv.slice(2);
if (!columns) {
  console.error("usage: node run.mjs MODEL LIBRARY INPUT OUTPUT ROWS COLUMNS (LIBRARY - for none)");
  process.exit(2);
}
const shape = [Number(rows), Number(columns)];
const x = Float32Array.from({ length: shape[0] * shape[1] }, (_, i) => Math.fround(0.01) * i);
const require = createRequire(join(process.cwd(), "run.mjs")); // packages lie in the current folder, or in NODE_PATH
const y = library === "-" ? await withPackage() : withLibrary();
for (const number of y) console.log(number);

async function withPackage() {
  const ort = require("onnxruntime-node");
  const session = await ort.InferenceSession.create(model);
  return (await session.run({ [input]: new ort.Tensor("float32", x, shape) }))[output].data;
}

function withLibrary() {
  const koffi = require("koffi");
  const ort = functions(koffi, koffi.load(runtime()));
  const made = (call) => {
    const out = [null];
    call(out);
    return out[0];
  };
  const env = made((out) => ort.CreateEnv(2, "run", out));
  const options = made((out) => ort.CreateSessionOptions(out));
  // All that topkast needs: before the session is made.
  ort.RegisterCustomOpsLibrary_V2(options, library);
  const session = made((out) => ort.CreateSession(env, model, options, out));
  const memory = made((out) => ort.CreateCpuMemoryInfo(1, 0, out));
  const given = made((out) => ort.CreateTensorWithDataAsOrtValue(memory, x, x.byteLength, shape, 2, 1, out));
  const found = made((out) => ort.Run(session, null, [input], [given], 1, [output], 1, out));
  const info = made((out) => ort.GetTensorTypeAndShape(found, out));
  const length = made((out) => ort.GetTensorShapeElementCount(info, out));
  const data = made((out) => ort.GetTensorMutableData(found, out));
  return koffi.decode(data, koffi.array("float", Number(length)));
}

// The shared library of ONNX Runtime inside the package.
function runtime() {
  let folder = join(dirname(require.resolve("onnxruntime-node/package.json")), "bin");
  const version = readdirSync(folder).find((name) => name.startsWith("napi-"));
  folder = join(folder, version, process.platform, process.arch);
  return join(folder, readdirSync(folder).find((name) => /^(lib)?onnxruntime\b.*(so|dylib|dll)/.test(name)));
}

// Functions of ONNX Runtime's C interface by their place in its table, which only grows at its end. A function that
// returns a status throws an error if the status holds one.
function functions(koffi, loaded) {
  const pointer = "void *";
  const base = koffi.decode(loaded.func("OrtGetApiBase", pointer, [])(), koffi.array(pointer, 1));
  const table = koffi.call(base[0], koffi.proto("GetApi", pointer, ["uint32_t"]), 17);
  const at = (slot) => koffi.decode(table, slot * koffi.sizeof(pointer), pointer);
  const message = koffi.proto("GetErrorMessage", "str", [pointer]);
  const status = (name, slot, ...types) => {
    const type = koffi.proto(name, pointer, types);
    return (...values) => {
      const failed = koffi.call(at(slot), type, ...values);
      if (failed) throw new Error(koffi.call(at(2), message, failed));
    };
  };
  const out = koffi.out(koffi.pointer(pointer));
  return {
    CreateEnv: status("CreateEnv", 3, "int", "str", out),
    CreateSession: status("CreateSession", 7, pointer, "str", pointer, out),
    Run: status("Run", 9, pointer, pointer, "str *", "void **", "size_t", "str *", "size_t", koffi.inout("void **")),
    CreateSessionOptions: status("CreateSessionOptions", 10, out),
    CreateTensorWithDataAsOrtValue: status(
      "CreateTensor", 49, pointer, pointer, "size_t", koffi.pointer("int64_t"), "size_t", "int", out),
    GetTensorMutableData: status("GetTensorMutableData", 51, pointer, out),
    GetTensorShapeElementCount: status(
      "GetTensorShapeElementCount", 64, pointer, koffi.out(koffi.pointer("size_t"))),
    GetTensorTypeAndShape: status("GetTensorTypeAndShape", 65, pointer, out),
    CreateCpuMemoryInfo: status("CreateCpuMemoryInfo", 69, "int", "int", out),
    RegisterCustomOpsLibrary_V2: status("RegisterCustomOpsLibrary_V2", 228, pointer, "str"),
  };
}
