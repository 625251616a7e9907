/* Runs a file of topkast.export in ONNX Runtime from C, on topkast's kernels.
 *
 *     cc run.c -I onnxruntime/include -L onnxruntime/lib -lonnxruntime -o run
 *     ./run model.onnx libtopkast.so x y 2 64
 *
 * where onnxruntime/ is a release of ONNX Runtime (1.17 or later), topkast.onnx.library_path() says where the library
 * is, x and y are the names of an input of float [2, 64] and of an output, both as `topkast inspect model.onnx` lists
 * them. The input is filled with 0, 0.01, 0.02, ...; each number of the output is printed on a line.
 */
#include <onnxruntime_c_api.h>
#include <stdio.h>
#include <stdlib.h>

static const OrtApi* ort;

static void must(OrtStatus* status) {
    if (!status) return;
    fprintf(stderr, "%s\n", ort->GetErrorMessage(status));
    ort->ReleaseStatus(status);
    exit(1);
}

int main(int count, char** words) {
    if (count != 7) {
        fprintf(stderr, "usage: %s MODEL LIBRARY INPUT OUTPUT ROWS COLUMNS\n", words[0]);
        return 2;
    }
    ort = OrtGetApiBase()->GetApi(17); /* the version that ONNX Runtime 1.17 brought, and every later one keeps */
    if (!ort) {
        fprintf(stderr, "ONNX Runtime is older than 1.17\n");
        return 1;
    }
    OrtEnv* env;
    OrtSessionOptions* options;
    OrtSession* session;
    must(ort->CreateEnv(ORT_LOGGING_LEVEL_WARNING, "run", &env));
    must(ort->CreateSessionOptions(&options));
    /* All that topkast needs: before the session is made. */
    must(ort->RegisterCustomOpsLibrary_V2(options, words[2]));
    must(ort->CreateSession(env, words[1], options, &session));

    const int64_t shape[2] = {atoll(words[5]), atoll(words[6])};
    const size_t size = (size_t)(shape[0] * shape[1]);
    float* x = (float*)malloc(size * sizeof(float));
    if (!x) return 1;
    for (size_t i = 0; i < size; ++i) x[i] = 0.01f * (float)i;
    OrtMemoryInfo* memory;
    OrtValue *given, *found = NULL;
    must(ort->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));
    must(ort->CreateTensorWithDataAsOrtValue(memory, x, size * sizeof(float), shape, 2,
                                             ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, &given));
    const char *const inputs[] = {words[3]}, *const outputs[] = {words[4]};
    must(ort->Run(session, NULL, inputs, (const OrtValue* const*)&given, 1, outputs, 1, &found));

    OrtTensorTypeAndShapeInfo* info;
    size_t length;
    float* y;
    must(ort->GetTensorTypeAndShape(found, &info));
    must(ort->GetTensorShapeElementCount(info, &length));
    must(ort->GetTensorMutableData(found, (void**)&y));
    for (size_t i = 0; i < length; ++i) printf("%.9g\n", y[i]);

    ort->ReleaseTensorTypeAndShapeInfo(info);
    ort->ReleaseValue(found);
    ort->ReleaseValue(given);
    ort->ReleaseMemoryInfo(memory);
    ort->ReleaseSession(session);
    ort->ReleaseSessionOptions(options);
    ort->ReleaseEnv(env);
    free(x);
    return 0;
}
