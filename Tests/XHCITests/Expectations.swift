// SPDX-License-Identifier: Apache-2.0

import DMA
import GuestKit
import Testing
import USB
import XHCI

/// Completion codes for a slot that cannot exist. The specification permits either for a Slot ID of
/// 0 or above MaxSlots.
let noSuchSlot: Set<GuestEvent.Code> = [.slotNotEnabled, .trbError]

/// Completion codes for an invalid Input Context (xHCI 4.6.5, 4.6.6, 4.6.7).
let badInput: Set<GuestEvent.Code> = [.parameterError, .trbError]

/// Completion codes for a command to a disabled endpoint (xHCI 4.6.8 to 4.6.10).
let disabledEndpoint: Set<GuestEvent.Code> = [.endpointNotEnabled, .contextStateError]

extension Guest {
    /// Expects what must hold after any action of a guest: the controller does not spin, and after
    /// a reset it executes commands and transfers.
    func expectRecovery(sourceLocation: SourceLocation = #_sourceLocation) throws {
        #expect(!machine.isSpinning, sourceLocation: sourceLocation)
        try driver.start()
        #expect(answersCommands, sourceLocation: sourceLocation)
        _ = driver.takeAll(after: .milliseconds(50))
        for port in driver.connectedPorts { driver.clearPort(port) }
        let device = TestDevice { $0.endpoint == .control ? nil : .give([1, 2, 3]) }
        try machine.attach(device)
        let port = try driver.waitForConnection()
        let endpoint = try driver.address(port: port).configureOne(.bulkIn(3))
        #expect(try endpoint.receive(64) == [1, 2, 3], sourceLocation: sourceLocation)
    }
}
