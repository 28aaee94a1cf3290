/* Continues training an exported model, with TensorFlow's C library alone.
 *
 *     ./train EXPORTED STEPS CHECKPOINT LOSS STEP
 *
 * Makes STEPS steps with a batch of 8 examples, x of shape (8, 4) and y of shape (8),
 * and saves the state to CHECKPOINT. LOSS and STEP are the names of the outputs `loss`
 * of `train` and `step` of `save`, as `saved_model_cli show` prints them.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <tensorflow/c/c_api.h>

#define N 8

static TF_Status* status;

static void check(const char* what) {
  if (TF_GetCode(status) == TF_OK) return;
  fprintf(stderr, "%s: %s\n", what, TF_Message(status));
  exit(1);
}

/* An input or output of a signature, by its name such as "train_x:0". */
static TF_Output named(TF_Graph* graph, const char* name) {
  char operation[256];
  int index = 0;
  if (sscanf(name, "%255[^:]:%d", operation, &index) < 1) operation[0] = 0;
  TF_Output output = {TF_GraphOperationByName(graph, operation), index};
  if (output.oper == NULL) {
    fprintf(stderr, "The model has no %s\n", name);
    exit(1);
  }
  return output;
}

static TF_Tensor* tensor(TF_DataType type, int dims, const int64_t* shape,
                         const void* data, size_t bytes) {
  TF_Tensor* result = TF_AllocateTensor(type, shape, dims, bytes);
  memcpy(TF_TensorData(result), data, bytes);
  return result;
}

int main(int argc, char** argv) {
  if (argc != 6) {
    fprintf(stderr, "usage: %s EXPORTED STEPS CHECKPOINT LOSS STEP\n", argv[0]);
    return 2;
  }
  status = TF_NewStatus();
  TF_Graph* graph = TF_NewGraph();
  const char* tags[] = {"serve"};
  TF_Session* session =
      TF_LoadSessionFromSavedModel(TF_NewSessionOptions(), NULL, argv[1], tags, 1,
                                   graph, NULL, status);
  check("load");

  /* Made-up data, the same as in the Python example of docs/saving.md. */
  float x[N][4];
  int64_t y[N];
  for (int i = 0; i < N; ++i) {
    for (int j = 0; j < 4; ++j) x[i][j] = (float)((5 * i + 3 * j) % 8) / 8;
    y[i] = i % 3;
  }
  const int64_t x_shape[] = {N, 4}, y_shape[] = {N};
  TF_Output inputs[] = {named(graph, "train_x:0"), named(graph, "train_y:0")};
  TF_Tensor* values[] = {tensor(TF_FLOAT, 2, x_shape, x, sizeof x),
                         tensor(TF_INT64, 1, y_shape, y, sizeof y)};
  TF_Output loss[] = {named(graph, argv[4])};
  for (int step = 0; step < atoi(argv[2]); ++step) {
    TF_Tensor* result[1];
    TF_SessionRun(session, NULL, inputs, values, 2, loss, result, 1, NULL, 0, NULL,
                  status);
    check("train");
    printf("loss %.6f\n", *(float*)TF_TensorData(result[0]));
    TF_DeleteTensor(result[0]);
  }

  TF_TString path;
  TF_TString_Init(&path);
  TF_TString_Copy(&path, argv[3], strlen(argv[3]));
  TF_Output input[] = {named(graph, "save_path:0")};
  TF_Tensor* value[] = {tensor(TF_STRING, 0, NULL, &path, sizeof path)};
  TF_Output count[] = {named(graph, argv[5])};
  TF_Tensor* result[1];
  TF_SessionRun(session, NULL, input, value, 1, count, result, 1, NULL, 0, NULL, status);
  check("save");
  printf("saved after %lld updates\n", (long long)*(int64_t*)TF_TensorData(result[0]));
  TF_CloseSession(session, status);
  check("close");
  return 0;
}
