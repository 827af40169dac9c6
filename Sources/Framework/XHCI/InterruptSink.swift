// SPDX-License-Identifier: Apache-2.0

/// The receiver of the controller's interrupts: MSI-X, or a counter in tests.
public protocol InterruptSink: AnyObject {
    /// Sends the MSI-X message of an interrupter. The vector is the interrupter's index.
    func signal(vector: Int)
}
