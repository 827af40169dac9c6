// SPDX-License-Identifier: Apache-2.0

public import BackendKit

extension LoopbackBackend: OperableBackend {
    public static let operations = [
        BackendOperation(
            "faults", summary: "Replace the fault rules of a test device of a running server.",
            arguments: [
                BackendOperation.Argument(
                    "rules", .text(), summary: "The new rules; an empty text ends all faults.")
            ],
            example: "'bulk-in stall after=9'", confirmation: "new rules",
            absence: "makes no faults on demand")
    ]

    public func execute(_ call: OperationCall, completion: @escaping (BackendError?) -> Void) {
        do throws(BackendError) {
            try replaceFaults(call.text("rules") ?? "")
            completion(nil)
        } catch {
            completion(error)
        }
    }
}
