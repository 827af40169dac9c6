// SPDX-License-Identifier: Apache-2.0

import DMA
import GuestKit
import Testing
import USB
import XHCI

/// Codes that say "there is no such slot": the specification leaves the choice where the number is
/// one that no slot can have.
let noSuchSlot: Set<GuestEvent.Code> = [.slotNotEnabled, .trbError]

/// Codes that say "the input context is wrong" (xHCI 4.6.5, 4.6.6, 4.6.7).
let badInput: Set<GuestEvent.Code> = [.parameterError, .trbError]

/// Codes for a command to an endpoint that is disabled (xHCI 4.6.8 to 4.6.10).
let disabledEndpoint: Set<GuestEvent.Code> = [.endpointNotEnabled, .contextStateError]

extension Guest {
    /// What must hold after anything a guest may do: the controller neither spins nor is lost, and a
    /// reset brings everything back.
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
