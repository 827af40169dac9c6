// SPDX-License-Identifier: Apache-2.0

public import BackendKit

extension LoopbackBackend: ReconfigurableBackend {
    public func configure(
        _ change: BackendChange, whenDone done: @escaping (BackendError?) -> Void
    ) {
        do throws(BackendError) {
            guard case .faults(let rules) = change else { throw .unsupported(change, by: self) }
            try replaceFaults(rules)
            done(nil)
        } catch {
            done(error)
        }
    }
}
